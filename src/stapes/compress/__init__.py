"""Steps that make a model lighter: a model folder in, another one out, and what it cost."""

from .merge import merge_lora
from .quantize import quantize

__all__ = ["merge_lora", "quantize"]
