"""Recipes: typed sections, one level of `extends`, and errors that name the nearest known key. Imports no torch."""

from .augmentation import Augment
from .reading import dump_recipe, load_recipe, parse_value
from .sections import (
    Bench,
    CTCCompressor,
    DynamicClip,
    Evaluate,
    FixedClip,
    LoRA,
    MergeLora,
    Model,
    Quantization,
    Quantize,
    Recipe,
    StackedMLP,
    Stage,
    WindowedQFormer,
)

__all__ = [
    "Augment",
    "Bench",
    "CTCCompressor",
    "DynamicClip",
    "Evaluate",
    "FixedClip",
    "LoRA",
    "MergeLora",
    "Model",
    "Quantization",
    "Quantize",
    "Recipe",
    "StackedMLP",
    "Stage",
    "WindowedQFormer",
    "dump_recipe",
    "load_recipe",
    "parse_value",
]
