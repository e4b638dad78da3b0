"""Put the page on a port: loopback unless told otherwise, and nothing fetched from anywhere else."""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .answering import Panel, names_of
from .clips import Clip, load_clips

if TYPE_CHECKING:
    import uvicorn

DEFAULT_PORT = 7860
"""The first port that is tried where none is asked for; then the 99 after it."""

MAX_UPLOAD_BYTES = 200 * 1024 * 1024

# What the browser may load: from here alone. Gradio's own page needs inline scripts and styles, and workers from blobs.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
    )
)


def serve(
    folders: Sequence[Path],
    *,
    host: str,
    port: int | None,
    examples: Path | None,
    device: str | None,
    max_audio_s: float,
    max_new_tokens: int,
    on_ready: Callable[[str], None],
) -> None:
    """Load models and show their page until the program is interrupted.

    Args:
        folders: one model folder or more; several answer side by side.
        host: address to listen at; `127.0.0.1` is this computer alone.
        port: 0 for any free port, None for the first free one from `DEFAULT_PORT` on.
        examples: a manifest of clips to offer; none for None.
        device: torch device; the first GPU if there is one, else the CPU.
        max_audio_s: longest clip that is taken, in seconds.
        max_new_tokens: longest answer.
        on_ready: told the page's address when it can be opened.

    Raises:
        UsageError: if gradio is missing, the port is taken, the host is not this computer's, or a model is named twice.
        ModelFolderError: if a model folder is incomplete or damaged.
        ManifestError: if the examples cannot be read.
    """
    require_gradio()
    names = names_of(list(folders))
    clips = load_clips(examples) if examples else []
    # The port is taken before the seconds it takes to load a model.
    with closing(bind(host, port)) as sock, tempfile.TemporaryDirectory(prefix="stapes-demo-") as uploads:
        from ..inference import load

        models = {name: load(folder, device=device) for name, folder in zip(names, folders, strict=True)}
        panel = Panel(models, max_audio_s=max_audio_s, max_new_tokens=max_new_tokens)
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read when gradio is imported
        app = build_app(panel, clips)
        _run(app, sock, lambda: on_ready(address_of(sock, host)))


def require_gradio() -> None:
    """Raise if gradio is not installed.

    Raises:
        UsageError: naming the command that installs it.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise UsageError(
            "`stapes demo` needs gradio, which is not installed; in a clone run `make install`, elsewhere "
            "`python -m pip install 'gradio>=6.31,<7'`"
        )


def bind(host: str, port: int | None) -> socket.socket:
    """Take a port and listen, so that no other program gets it.

    Raises:
        UsageError: if it is taken, forbidden, or the host is not an address of this computer.
    """
    tried = range(DEFAULT_PORT, DEFAULT_PORT + 100) if port is None else (port,)
    for candidate in tried:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            raise UsageError(f"--host {host}: {error.strerror}; 127.0.0.1 is this computer alone") from None
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen()
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and port is None:
                continue
            raise UsageError(_why_not(host, candidate, error)) from None
        return sock
    raise UsageError(f"ports {tried[0]} to {tried[-1]} of {host} are all taken; name a free one with --port")


def _why_not(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"--port {port} is taken on {host}; name another, or leave the option out for the next free one"
        case errno.EACCES:
            return f"--port {port} may not be used without more rights; name one above 1023"
        case _:
            return f"--host {host}: {error.strerror}; 127.0.0.1 is this computer alone"


def is_loopback(host: str) -> bool:
    """Tell whether only this computer can reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(sock: socket.socket, host: str) -> str:
    """Return the address to open in a browser on this computer."""
    port = sock.getsockname()[1]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def build_app(panel: Panel, clips: Sequence[Clip]) -> Any:
    """Build the ASGI app that shows the page of `panel`; import gradio no earlier."""
    import fastapi
    import gradio as gr

    from .page import build_page, head, theme

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        build_page(panel, clips),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        allowed_paths=[str(clip.audio) for clip in clips],
        theme=theme(),
        head=head(),
    )
    return _with_policy(app)


def _with_policy(app: Any) -> Any:
    """Have every answer tell the browser to fetch nothing from elsewhere, whatever is in the page."""
    headers = [
        (b"content-security-policy", CONTENT_SECURITY_POLICY.encode("ascii")),
        (b"referrer-policy", b"no-referrer"),
    ]

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(event: Any) -> None:
            if event["type"] == "http.response.start":
                event = {**event, "headers": [*event.get("headers", ()), *headers]}
            await send(event)

        await app(scope, receive, send_with_headers if scope["type"] == "http" else send)

    return guarded


def _run(app: Any, sock: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; both end the page in good order, uploads deleted."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, lifespan="on")

    def terminate(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        _server_class(on_ready)(config).run(sockets=[sock])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)


def _server_class(on_ready: Callable[[], None]) -> type[uvicorn.Server]:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_ready()

    return Server
