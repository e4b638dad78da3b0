"""Checkpoint file in, model folder out: complete, or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import FeatureExtractionMixin

from ..assembly import save_model
from ..environment import environment
from ..errors import WeightsError
from ..files import staged_folder, write_json
from ..model import BeatsFeatureExtractor, EatFeatureExtractor
from .beats import load_beats
from .checkpoints import Loaded
from .eat import load_eat
from .salmonn import load_salmonn

CONVERSION_FILE = "conversion.json"


def convert_beats(path: Path, folder: Path) -> dict[str, str]:
    """Make a folder of a BEATs, for `model.sound_encoder`; see `load_beats`.

    Returns:
        what of the checkpoint the folder does not hold: key → why. The folder's `conversion.json` holds it, too.

    Raises:
        WeightsError: if the file is no such checkpoint, or the folder is there already; no folder is left then.
    """
    return _convert_sound_encoder(path, folder, load_beats, BeatsFeatureExtractor())


def convert_eat(path: Path, folder: Path) -> dict[str, str]:
    """Make a folder of an EAT, for `model.sound_encoder`; see `load_eat` and `convert_beats`."""
    return _convert_sound_encoder(path, folder, load_eat, EatFeatureExtractor())


def convert_salmonn(
    path: Path,
    folder: Path,
    *,
    speech_encoder: str,
    llm: str,
    sound_encoder: str | None = None,
    lora_alpha: int | None = None,
    complete: bool = False,
) -> dict[str, str]:
    """Make a model folder of a checkpoint of the SALMONN family; see `load_salmonn` and `convert_beats`.

    Args:
        path: the `.pth` file.
        folder: to be made.
        speech_encoder, llm, sound_encoder, lora_alpha: see `load_salmonn`.
        complete: write the weights of encoders and LLM, too; else the folder names them, as the checkpoint did.

    Raises:
        ModelFolderError: if encoder or LLM are not what is wanted.
    """
    _refuse_existing(folder)
    # A folder that is named relative to here has to be found from elsewhere.
    names = [
        str(Path(name).expanduser().absolute()) if name is not None and Path(name).expanduser().is_dir() else name
        for name in (speech_encoder, llm, sound_encoder)
    ]
    assert names[0] is not None
    assert names[1] is not None
    model, processor, ignored = load_salmonn(path, names[0], names[1], names[2], lora_alpha)
    with staged_folder(folder) as work:
        save_model(model, processor, work, trained_only=not complete)
        _note(work, path, ignored)
    return ignored


def _convert_sound_encoder(
    path: Path, folder: Path, load: Callable[[Path], Loaded[Any]], front_end: FeatureExtractionMixin
) -> dict[str, str]:
    _refuse_existing(folder)
    model, ignored = load(path)
    with staged_folder(folder) as work:
        model.save_pretrained(work)
        front_end.save_pretrained(work)
        _note(work, path, ignored)
    return ignored


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise WeightsError(f"{folder}: is there already; name another --out, or take it away first")


def _note(work: Path, path: Path, ignored: dict[str, str]) -> None:
    write_json(work / CONVERSION_FILE, {"file": path.name, "ignored": ignored, "environment": environment()})
