"""What is shown of a reply: text as text, figures with their units, and when a screen reader may speak."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stapes.demo.answering import Figures, Reply
from stapes.demo.cards import about, card, message, stopped
from stapes.demo.clips import Clip

FIGURES = Figures(
    audio_s=15.24,
    ttft_s=0.4432,
    tokens_per_s=20.06,
    num_audio_tokens=1095,
    num_tokens=200,
    peak_bytes=1_152_400_000,
    memory="rss",
    truncated=False,
)


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).strip()


def test_figures_have_names_and_units() -> None:
    shown = words(card(Reply("tiny", "good morning", "done", FIGURES)))
    assert shown == (
        "tiny good morning Time to first token 443 ms encoding the sound included Tokens per second 20.1 200 in all "
        "Audio tokens 1,095 for 15.2 s of sound Peak memory 1,152 MB of the whole program"
    )


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"ttft_s": 1.26}, "Time to first token 1.3 s"),
        ({"tokens_per_s": None}, "Tokens per second –"),
        ({"peak_bytes": None, "memory": None}, "Peak memory –"),
        ({"memory": "cuda"}, "Peak memory 1,152 MB of the GPU"),
        ({"truncated": True}, "Cut off after 200 tokens, the longest answer this page gives."),
    ],
)
def test_figures_that_are_not_as_usual(change: dict[str, object], shown: str) -> None:
    assert shown in words(card(Reply("tiny", "x", "done", replace(FIGURES, **change))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply", "text", "busy"),
    [
        (Reply("m"), "The answer will appear here.", False),
        (Reply("m", state="waiting"), "Waiting for its turn …", True),
        (Reply("m", state="speaking"), "Listening …", True),
        (Reply("m", "good", "speaking"), "good", True),
        (Reply("m", "", "done", FIGURES), "(The model said nothing.)", False),
    ],
)
def test_an_answer_is_read_out_when_it_is_complete(reply: Reply, text: str, busy: bool) -> None:
    shown = card(reply)
    assert text in words(shown)
    assert f'aria-busy="{str(busy).lower()}"' in shown
    assert 'aria-live="polite"' in shown


def test_a_stopped_answer_says_so_and_a_complete_one_does_not() -> None:
    halted = stopped(card(Reply("m", "good", "speaking")))
    assert words(halted) == "m good Stopped."
    assert 'aria-busy="false"' in halted
    for reply in (Reply("m"), Reply("m", "good", "done", FIGURES)):
        assert stopped(card(reply)) == card(reply)


def test_what_is_said_is_never_markup() -> None:
    evil = "<img src=x onerror=alert(1)>&amp;\"'"
    clip = Clip("x", Path("x.ogg"), "asr", evil, None, evil, evil)
    for shown in (card(Reply(evil, evil, "done", FIGURES)), message(evil), about(clip)):
        assert "<img" not in shown
        assert "&lt;img src=x onerror=alert(1)&gt;&amp;amp;&quot;&#x27;" in shown


def test_an_example_about_which_nothing_is_known() -> None:
    assert about(Clip("x", Path("x.ogg"), "asr", "x", None, None, "")) == ""
