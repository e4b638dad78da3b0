"""Weights by name: `resolve` finds or fetches them; `describe` and `source` say which they are.

Some come with code: `allow_code`, `admit_code`.
"""

from .remote_code import admit_code, allow_code
from .resolve import cache_folder, describe, find_config, resolve, resolve_again, source

__all__ = [
    "admit_code",
    "allow_code",
    "cache_folder",
    "describe",
    "find_config",
    "resolve",
    "resolve_again",
    "source",
]
