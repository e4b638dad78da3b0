"""The page: components, and what each button does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from ..data.prompts import TEST_INSTRUCTIONS
from ..data.sample import TASKS, Task
from ..errors import StapesError
from .answering import Panel, Reply
from .cards import about, card, message, stopped
from .clips import Clip

_CSS = Path(__file__).with_name("page.css")

MAX_WAITING = 32
"""How many questions may wait for the models before newcomers are sent away."""

# Uploads and recordings are deleted after an hour, and all of them when the page ends.
_DELETE_EVERY_S, _DELETE_AFTER_S = 600, 3600

_EXAMPLES_OF: dict[Task, str] = {
    "asr": "Examples of speech",
    "audiocaption": "Examples of other sounds",
    "qa": "Examples of questions",
}

# Whose computer that is, the page cannot tell: a proxy may stand before a loopback address.
_FOOT = (
    '<p class="foot">Sounds go to the computer that runs stapes, which sends them nowhere. Recordings are deleted '
    "after an hour, and when the page is closed down. Small models make mistakes.</p>"
)

_log = logging.getLogger(__name__)


def theme() -> gr.themes.Base:
    """Return the colours and fonts: only fonts that the reader's system has, so that none is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # White on teal 700 is 5.5 : 1 and slate 600 on white 7.6 : 1; the theme's own are 2.5 and 2.6, hard to read.
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        color_accent="*primary_600",
    )


def head() -> str:
    """Return what goes into the page's head: the style sheet, which gradio's own `css` would rewrite and cut."""
    return f"<style>{_CSS.read_text(encoding='utf-8')}</style>"


def build_page(panel: Panel, clips: Sequence[Clip]) -> gr.Blocks:
    """Lay out the page.

    Args:
        panel: the models.
        clips: examples to offer; none is fine.
    """
    with gr.Blocks(title="stapes", analytics_enabled=False, delete_cache=(_DELETE_EVERY_S, _DELETE_AFTER_S)) as page:
        gr.HTML(_head(list(panel.models)))
        parts = _lay_out(panel, clips)
        gr.HTML(_FOOT)
        _connect(parts, panel, clips)
    return page.queue(max_size=MAX_WAITING, api_open=False)


class _Parts(NamedTuple):
    """What of the page is read, pressed or written."""

    audio: gr.Audio
    examples: list[gr.Button]
    known: gr.HTML
    transcribe: gr.Button
    describe: gr.Button
    question: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    error: gr.HTML
    cards: list[gr.HTML]


def _lay_out(panel: Panel, clips: Sequence[Clip]) -> _Parts:
    """Put sound and examples to the left, what to do with them to the right; on a phone one below the other."""
    with gr.Row():
        with gr.Column(min_width=320):
            audio = gr.Audio(label="Sound", sources=["upload", "microphone"], type="filepath", buttons=[])
            examples = [gr.Button(clip.title, size="sm", min_width=0, render=False) for clip in clips]
            _lay_out_examples(clips, examples)
            known = gr.HTML("", visible=False)
        with gr.Column(min_width=320):
            with gr.Row():
                transcribe = gr.Button("Transcribe", variant="primary", min_width=120)
                describe = gr.Button("Describe", variant="primary", min_width=120)
            question = gr.Textbox(
                label="Question", placeholder="Is someone speaking?", lines=1, max_lines=4, max_length=2000
            )
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", min_width=120)
                stop = gr.Button("Stop", variant="secondary", min_width=120)
            error = gr.HTML("", visible=False)
            cards = [gr.HTML(card(reply), render=False) for reply in panel.idle()]
            if len(cards) == 1:
                cards[0].render()
    if len(cards) > 1:
        with gr.Row():
            for each in cards:
                with gr.Column(min_width=320):
                    each.render()
    return _Parts(audio, examples, known, transcribe, describe, question, ask, stop, error, cards)


def _connect(parts: _Parts, panel: Panel, clips: Sequence[Clip]) -> None:
    """Say what happens when something is pressed."""
    for clip, button in zip(clips, parts.examples, strict=True):
        button.click(
            partial(_take, clip),
            outputs=[parts.audio, parts.question, parts.known],
            show_progress="hidden",
            api_visibility="private",
        )
    # A sound of one's own is no example any more.
    for event in (parts.audio.input, parts.audio.clear):
        event(lambda: gr.update(value="", visible=False), outputs=parts.known, api_visibility="private")
    run = partial(_on, outputs=[parts.error, *parts.cards], show_progress_on=parts.cards)
    answer = partial(_answer, panel)
    events = [
        run(parts.transcribe.click, partial(answer, instruction=TEST_INSTRUCTIONS["asr"]), [parts.audio]),
        run(parts.describe.click, partial(answer, instruction=TEST_INSTRUCTIONS["audiocaption"]), [parts.audio]),
        run(parts.ask.click, answer, [parts.audio, parts.question]),
        run(parts.question.submit, answer, [parts.audio, parts.question]),
    ]
    # First the end of the answers, then a look at the cards: with both at once an update that is on its way comes after
    # the cards were marked, and leaves them speaking for ever.
    parts.stop.click(None, cancels=events, api_visibility="private").then(
        _stop, inputs=parts.cards, outputs=parts.cards, show_progress="hidden", api_visibility="private"
    )


def _on(event: Callable[..., Any], do: Callable[..., Any], inputs: list[Any], **others: Any) -> Any:
    """Let an event run `do`; of all events that use the models, one runs at a time and the others wait."""
    return event(
        do,
        inputs=inputs,
        show_progress="minimal",
        concurrency_limit=1,
        concurrency_id="models",
        api_visibility="private",
        **others,
    )


def _answer(panel: Panel, audio: str | None, instruction: str | None) -> Iterator[list[Any]]:
    """Yield the message and the cards, again and again, while the models speak."""
    replies = panel.idle()
    try:
        for replies in panel.ask(audio, instruction):
            yield [gr.update(value="", visible=False), *map(card, replies)]
    except StapesError as error:
        yield _failed(replies, str(error))
    except Exception as error:
        # People at the page get one line, and whoever started it the rest.
        _log.exception("the model failed")
        yield _failed(replies, f"The model failed ({type(error).__name__}); the terminal of `stapes demo` says why.")


def _stop(*shown: str) -> list[str] | str:
    halted = [stopped(each) for each in shown]
    return halted if len(halted) > 1 else halted[0]  # gradio takes a list for the one card's text


def _failed(replies: Sequence[Reply], text: str) -> list[Any]:
    """Show a message, and of the answers those that were complete before."""
    kept = [reply if reply.state == "done" else Reply(reply.model) for reply in replies]
    return [gr.update(value=message(text), visible=True), *map(card, kept)]


def _lay_out_examples(clips: Sequence[Clip], buttons: Sequence[gr.Button]) -> None:
    for task in TASKS:
        of_task = [button for clip, button in zip(clips, buttons, strict=True) if clip.task == task]
        if of_task:
            gr.HTML(f'<h2 class="step">{_EXAMPLES_OF[task]}</h2>')
            with gr.Row(elem_classes="chips"):
                for button in of_task:
                    button.render()


def _take(clip: Clip) -> list[Any]:
    told = about(clip)
    return [str(clip.audio), clip.question or "", gr.update(value=told, visible=bool(told))]


def _head(names: list[str]) -> str:
    shown = " and ".join(f"<code>{escape(name)}</code>" for name in names)
    return (
        '<header class="head"><h1>stapes</h1>'
        f"<p>Give it a sound and ask about it. {'Models' if len(names) > 1 else 'Model'}: {shown}</p></header>"
    )
