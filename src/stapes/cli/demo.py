"""`stapes demo`: a page to try models on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    app.command()(demo)


def demo(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[MODEL]...", help="Model folders; two answer side by side; stapes-tiny unless given."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Any but 127.0.0.1 opens the page to others, without a password.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 for any free one; the first free from 7860 on unless given.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser when it is ready.")] = False,
    examples: Annotated[
        Path | None, typer.Option(help="A manifest of clips to offer; those that ship with stapes-tiny unless given.")
    ] = None,
    max_audio_s: Annotated[float, typer.Option(min=1, help="Longest sound that is taken, seconds.")] = 300,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most this many tokens of answer.")] = 200,
    device: Annotated[
        str | None, typer.Option(help="torch device; the first GPU if there is one, else the CPU.")
    ] = None,
) -> None:
    """Try models in a browser: record or choose a sound; transcribe, describe or ask; watch the answer and its cost.

    The page works without a network and asks nothing of one. Other people's browsers give it a microphone only over
    https, so put a proxy before it if they are to record. Ctrl-C ends it.

    Example: `stapes demo runs/tiny/merge_lora runs/tiny/quantize`
    """
    from ..defaults import example_clips, find_model
    from ..demo import is_loopback, serve
    from .printing import quiet_libraries

    quiet_libraries()

    def ready(address: str) -> None:
        typer.echo(address)
        typer.echo("The page is ready; Ctrl-C ends it.", err=True)
        if not is_loopback(host):
            typer.echo(f"Whoever can reach this computer at {host} can use it: there is no password.", err=True)
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    folders = [find_model(model) for model in models or [None]]
    typer.echo(f"Loading {len(folders)} model{'s' * (len(folders) > 1)} …", err=True)
    serve(
        folders,
        host=host,
        port=port,
        examples=examples or example_clips(),
        device=device,
        max_audio_s=max_audio_s,
        max_new_tokens=max_new_tokens,
        on_ready=ready,
    )
