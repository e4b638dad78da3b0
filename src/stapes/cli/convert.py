"""`stapes convert beats`, `eat` and `salmonn`: published checkpoints of others as model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_File = Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint, as it is published.")]
_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    verbs = typer.Typer(help="Make model folders of published checkpoints, strictly.", no_args_is_help=True)
    verbs.command()(beats)
    verbs.command()(eat)
    verbs.command()(salmonn)
    app.add_typer(verbs, name="convert")


def beats(file: _File, out: _Out, as_json: _Json = False) -> None:
    """Make a folder of a BEATs checkpoint (`.pt` of microsoft/unilm) for a recipe's `model.sound_encoder`.

    Example: `stapes convert beats BEATs_iter3_plus_AS2M.pt --out encoders/beats`
    """
    from ..convert.folders import convert_beats
    from .printing import quiet_libraries

    quiet_libraries()
    _print(convert_beats(file, out), out, as_json)


def eat(file: _File, out: _Out, as_json: _Json = False) -> None:
    """Make a folder of an EAT checkpoint (fairseq's `.pt`, or a folder of the Hub) for `model.sound_encoder`.

    Example: `stapes convert eat EAT-base_epoch30_pt.pt --out encoders/eat`
    """
    from ..convert.folders import convert_eat
    from .printing import quiet_libraries

    quiet_libraries()
    _print(convert_eat(file, out), out, as_json)


def salmonn(
    file: _File,
    speech_encoder: Annotated[str, typer.Option(help="The Whisper it was trained with: Hub id or folder.")],
    llm: Annotated[str, typer.Option(help="The LLM it was trained with: Hub id or folder.")],
    out: _Out,
    sound_encoder: Annotated[
        str | None, typer.Option(help="The folder of its sound encoder, made by `convert beats`; none if it had none.")
    ] = None,
    lora_alpha: Annotated[
        int | None, typer.Option(min=1, help="Of its adapters, if the checkpoint does not say.")
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Write the weights of encoders and LLM, too; else they come by name.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Make a model folder of a checkpoint of SALMONN, of NOTA's baseline, or derived from them.

    The model hears and reads what the original does: 88 audio tokens for 30 s, and `USER: …` as the prompt. Nothing is
    written unless every tensor finds its place; what has none is listed, with the reason.

    Example: `stapes convert salmonn checkpoint_best.pth --speech-encoder openai/whisper-large-v2 --sound-encoder encoders/beats --llm meta-llama/Llama-3.2-3B-Instruct --out models/salmonn`
    """  # noqa: E501 - a command of one line
    from ..convert.folders import convert_salmonn
    from .printing import quiet_libraries

    quiet_libraries()
    ignored = convert_salmonn(
        file,
        out,
        speech_encoder=speech_encoder,
        llm=llm,
        sound_encoder=sound_encoder,
        lora_alpha=lora_alpha,
        complete=complete,
    )
    _print(ignored, out, as_json)


def _print(ignored: dict[str, str], out: Path, as_json: bool) -> None:
    from .printing import print_json

    if as_json:
        print_json({"folder": str(out), "ignored": ignored})
        return
    by_reason: dict[str, list[str]] = {}
    for name, reason in ignored.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        typer.echo(f"left out: {shown}: {reason}", err=True)
    typer.echo(out)
