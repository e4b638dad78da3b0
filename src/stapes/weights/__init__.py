"""Weights by name: `resolve` finds or fetches them, `describe` says which they are, `find_config` finds a shape.

Some come with code: `allow_code`, `admit_code`.
"""

from .remote_code import admit_code, allow_code
from .resolve import cache_folder, describe, find_config, resolve, source

__all__ = ["admit_code", "allow_code", "cache_folder", "describe", "find_config", "resolve", "source"]
