"""The model that is meant when none is named."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from .errors import ModelFolderError

DEFAULT_MODEL = "stapes-tiny"


def is_default(model: str | Path | None) -> bool:
    """Tell whether the model that ships with stapes is meant: none is named, or it by its name."""
    return model is None or (str(model) == DEFAULT_MODEL and not Path(model).exists())


def find_model(model: str | Path | None = None) -> Path:
    """Return the folder of a model: of the one that ships with stapes if `model` is None or its name.

    A folder of that name in the working directory comes first, as everywhere.

    Raises:
        ModelFolderError: if the shipped model is meant and was not installed.
    """
    if model is not None and not is_default(model):
        return Path(model)
    places = (
        Path(__file__).parents[2] / "models" / DEFAULT_MODEL,  # a checkout, or an editable installation of one
        Path(sysconfig.get_path("data")) / "share" / "stapes" / "models" / DEFAULT_MODEL,  # from a wheel
    )
    for place in places:
        if (place / "config.json").exists():
            return place
    looked = " and ".join(str(place) for place in places)
    raise ModelFolderError(f"{DEFAULT_MODEL}: not in {looked}; install stapes with its models, or name a model folder")


def example_clips() -> Path | None:
    """Return the manifest of the clips that ship beside the default model, or None if they were not installed."""
    try:
        manifest = find_model() / "examples" / "clips.jsonl"
    except ModelFolderError:
        return None
    return manifest if manifest.exists() else None
