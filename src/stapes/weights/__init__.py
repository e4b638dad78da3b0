"""Weights by name: `resolve` finds or fetches them, `describe` says which they are, `find_config` finds a shape."""

from .resolve import cache_folder, describe, find_config, resolve, source

__all__ = ["cache_folder", "describe", "find_config", "resolve", "source"]
