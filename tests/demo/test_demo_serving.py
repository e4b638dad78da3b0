"""Where the page listens, what it says when it cannot, and that it tells browsers to fetch nothing from elsewhere."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stapes.demo import serving
from stapes.demo.answering import Panel
from stapes.demo.clips import load_clips
from stapes.errors import UsageError
from stapes.inference import load


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_any_free_port() -> None:
    with serving.bind("127.0.0.1", 0) as first, serving.bind("127.0.0.1", 0) as second:
        assert first.getsockname()[0] == "127.0.0.1"
        assert first.getsockname()[1] != second.getsockname()[1]
        assert serving.address_of(first, "127.0.0.1") == f"http://127.0.0.1:{first.getsockname()[1]}/"


def test_a_port_that_is_taken(taken: int) -> None:
    with pytest.raises(UsageError, match=rf"^--port {taken} is taken on 127\.0\.0\.1; name another, or leave"):
        serving.bind("127.0.0.1", taken)


def test_the_next_free_port(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "DEFAULT_PORT", taken)
    with serving.bind("127.0.0.1", None) as sock:
        assert taken < sock.getsockname()[1] < taken + 100


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_host_that_is_not_this_computer(host: str) -> None:
    with pytest.raises(UsageError, match=rf"^--host {host}: .*; 127\.0\.0\.1 is this computer alone$"):
        serving.bind(host, 0)


def test_who_can_reach_a_host() -> None:
    assert [serving.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9")] == [True] * 4
    assert [serving.is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.4", "example.org")] == [False] * 4


def test_the_address_to_open() -> None:
    with serving.bind("0.0.0.0", 0) as sock:
        assert serving.address_of(sock, "0.0.0.0") == f"http://localhost:{sock.getsockname()[1]}/"
        assert serving.address_of(sock, "::1") == f"http://[::1]:{sock.getsockname()[1]}/"


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r"^`stapes demo` needs gradio.*`python -m pip install 'gradio>=6\.31,<7'`$"):
        serving.require_gradio()


def test_the_page_names_no_other_server(tiny_model_folder: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: `make install` brings it")
    from starlette.testclient import TestClient

    panel = Panel({"tiny": load(tiny_model_folder, device="cpu")}, max_audio_s=10, max_new_tokens=4)
    clip = load_clips(Path(__file__).parents[2] / "models" / "stapes-tiny" / "examples" / "clips.jsonl")[0]
    with TestClient(serving.build_app(panel, [clip])) as client:
        config = client.get("/config")
        sheet = client.get("/theme.css")
        pages = [client.get(path).status_code for path in ("/docs", "/redoc", "/monitoring/summary")]
        assert config.json()["analytics_enabled"] is False
        assert config.json()["title"] == "stapes"
        # Every function of the page is the page's alone, not an interface for programs.
        assert {dependency["api_visibility"] for dependency in config.json()["dependencies"]} == {"private"}
        models = [dependency for dependency in config.json()["dependencies"] if dependency["types"]["generator"]]
        assert len(models) == 4
        assert 200 not in pages
        files = [
            client.get(f"/gradio_api/file={path}").status_code for path in (clip.audio, clip.audio.parent / "README.md")
        ]
        assert files == [200, 403]
        named = set(re.findall(r"https?://[^/'\"]+", sheet.text))
        assert named == {"http://www.w3.org"}  # the name of SVG, in drawings that the sheet itself holds
        for answer in (config, sheet, client.get("/")):
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'self'; ")
            assert "http" not in policy
