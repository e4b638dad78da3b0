"""Replies, messages and clips as HTML; whatever a model or a file says is text there, never markup."""

from __future__ import annotations

from html import escape

from .answering import Figures, Reply
from .clips import Clip

_SPEAKING = 'aria-busy="true"'
_WAITING_TEXT = {
    "idle": "The answer will appear here.",
    "waiting": "Waiting for its turn …",
    "speaking": "Listening …",
    "done": "(The model said nothing.)",
}


def card(reply: Reply) -> str:
    """Show what one model says, and under it what that cost."""
    name = escape(reply.model)
    busy = _SPEAKING if reply.state in ("waiting", "speaking") else 'aria-busy="false"'
    text = (
        f'<p class="answer">{escape(reply.text)}</p>'
        if reply.text
        else f'<p class="answer absent">{_WAITING_TEXT[reply.state]}</p>'
    )
    figures = "" if reply.figures is None else _figures(reply.figures)
    # Read out once it is complete: not word by word.
    return (
        f'<section class="card {reply.state}" aria-label="Answer of {name}" {busy} aria-live="polite">'
        f"<h2>{name}</h2>{text}{figures}</section>"
    )


def stopped(shown: str) -> str:
    """Turn a card that was left unfinished into one that says so."""
    return shown.replace(_SPEAKING, 'aria-busy="false"').replace(
        "</section>", '<p class="note">Stopped.</p></section>' if _SPEAKING in shown else "</section>"
    )


def message(text: str) -> str:
    """Show what went wrong, in a line or two."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def about(clip: Clip) -> str:
    """Show what is known of an example clip: its reference answer and its licence."""
    lines = []
    if clip.target:
        lines.append(f"<dt>Right would be</dt><dd>{escape(clip.target)}</dd>")
    if clip.credit:
        lines.append(f"<dt>From</dt><dd>{escape(clip.credit)}</dd>")
    return f'<dl class="about">{"".join(lines)}</dl>' if lines else ""


def _figures(figures: Figures) -> str:
    peak = "–" if figures.peak_bytes is None else f"{figures.peak_bytes / 1e6:,.0f} MB"
    whose = "of the GPU" if figures.memory == "cuda" else "of the whole program"
    rows = [
        ("Time to first token", "encoding the sound included", _seconds(figures.ttft_s)),
        ("Tokens per second", f"{figures.num_tokens:,} in all", _rate(figures.tokens_per_s)),
        ("Audio tokens", f"for {figures.audio_s:.1f} s of sound", f"{figures.num_audio_tokens:,}"),
        ("Peak memory", whose, peak),
    ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd class='small'>{detail}</dd></div>" for name, detail, value in rows
    )
    note = (
        f'<p class="note">Cut off after {figures.num_tokens} tokens, the longest answer this page gives.</p>'
        if figures.truncated
        else ""
    )
    return f'<dl class="figures">{cells}</dl>{note}'


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _rate(tokens_per_s: float | None) -> str:
    return "–" if tokens_per_s is None else f"{tokens_per_s:,.1f}"
