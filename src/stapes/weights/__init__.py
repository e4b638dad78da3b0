"""Weights by name: `resolve` finds or fetches them; `describe` and `source` say which they are."""

from .resolve import cache_folder, describe, find_config, resolve, resolve_again, source

__all__ = ["cache_folder", "describe", "find_config", "resolve", "resolve_again", "source"]
