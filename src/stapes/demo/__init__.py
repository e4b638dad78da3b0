"""A page to try one model on, or two side by side: sound in, streamed text and its cost out. Needs the `demo` extra."""

from .serving import is_loopback, serve

__all__ = ["is_loopback", "serve"]
