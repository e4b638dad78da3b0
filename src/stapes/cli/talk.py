"""`stapes transcribe` and `stapes ask`: use a model from the shell."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated, Any

import typer

_Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="A model folder, e.g. runs/tiny/merge_lora; stapes-tiny unless given."),
]
_Tokens = Annotated[int, typer.Option(min=1, help="At most this many tokens of answer.")]
_Device = Annotated[str | None, typer.Option(help="torch device; the first GPU if there is one, else the CPU.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    app.command()(transcribe)
    app.command()(ask)


def transcribe(
    audio: Annotated[list[Path], typer.Argument(help="Audio files that soundfile reads, of any length.")],
    model: _Model = None,
    max_new_tokens: _Tokens = 200,
    device: _Device = None,
    as_json: _Json = False,
) -> None:
    """Write down the speech in audio files, a line each.

    Example: `stapes transcribe data/speech/*.ogg`
    """
    from ..data.prompts import TEST_INSTRUCTIONS

    _answer(audio, TEST_INSTRUCTIONS["asr"], model, max_new_tokens, device, as_json)


def ask(
    audio: Annotated[Path, typer.Argument(help="An audio file that soundfile reads, of any length.")],
    question: Annotated[str, typer.Argument(help="A question, or any instruction, about the audio.")],
    model: _Model = None,
    max_new_tokens: _Tokens = 200,
    device: _Device = None,
    as_json: _Json = False,
) -> None:
    """Answer a question about an audio file.

    Example: `stapes ask clip.ogg "Is someone speaking?"`
    """
    _answer([audio], question, model, max_new_tokens, device, as_json)


def _answer(
    audio: list[Path], instruction: str, model: Path | None, max_new_tokens: int, device: str | None, as_json: bool
) -> None:
    from ..collector import collector_paused
    from ..data.audio import load_audio
    from .printing import print_json, quiet_libraries

    # Bad audio is found before the seconds it takes to load a model.
    waveforms = [load_audio(path) for path in audio]
    with collector_paused():
        from ..inference import load

        quiet_libraries()
        lm = load(model, device=device)
    gc.freeze()  # nor has it to be searched from now on: the program ends with the answers
    said: list[dict[str, Any]] = []
    for path, waveform in zip(audio, waveforms, strict=True):
        answer = lm.answer([waveform], [instruction], max_new_tokens=max_new_tokens)[0]
        said.append(
            {
                "audio": str(path),
                "text": answer.text,
                "num_tokens": answer.num_tokens,
                "truncated": answer.truncated,
            }
        )
        if not as_json:
            typer.echo(f"{path}\t{answer.text}" if len(audio) > 1 else answer.text)
        if answer.truncated:
            typer.echo(
                f"{path}: the answer was cut after {answer.num_tokens} tokens; `--max-new-tokens` allows more", err=True
            )
    if as_json:
        print_json(said)
