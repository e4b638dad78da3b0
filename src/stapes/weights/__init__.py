"""Weights by name: `resolve` finds or fetches them, `describe` says which they are."""

from .resolve import cache_folder, describe, resolve, source

__all__ = ["cache_folder", "describe", "resolve", "source"]
