"""A page to try one model on, or two side by side: sound in, streamed text and its cost out. Needs the `demo` extra."""

from .serving import DEFAULT_PORT, serve

__all__ = ["DEFAULT_PORT", "serve"]
