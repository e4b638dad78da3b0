"""stapes: an open workbench for light-weight audio language models."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference import AudioLM, load
    from .model import StapesConfig, StapesForConditionalGeneration, StapesProcessor
    from .recipe import Recipe, load_recipe
    from .run import run_recipe

__version__ = _version("stapes")

_HOME = {
    "AudioLM": "inference",
    "Recipe": "recipe",
    "StapesConfig": "model",
    "StapesForConditionalGeneration": "model",
    "StapesProcessor": "model",
    "load": "inference",
    "load_recipe": "recipe",
    "run_recipe": "run",
}

__all__ = [
    "AudioLM",
    "Recipe",
    "StapesConfig",
    "StapesForConditionalGeneration",
    "StapesProcessor",
    "__version__",
    "load",
    "load_recipe",
    "run_recipe",
]


def __getattr__(name: str) -> Any:
    # Public names are loaded when they are first used: importing stapes must not cost the seconds torch takes.
    if name in _HOME:
        from .collector import collector_paused

        with collector_paused():
            return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
