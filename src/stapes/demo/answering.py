"""What the page does, without the page: one clip and one instruction to every model, one model after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Literal

import numpy as np

from ..bench.memory import MemoryKind, memory_kind, peak_bytes, reset_peak
from ..data.audio import SAMPLE_RATE_HZ, load_audio, probe
from ..errors import AudioError, UsageError
from ..inference import AnswerStream, AudioLM

# A browser redraws 60 times a second at best; a token that comes sooner is shown with the next.
_REDRAW_S = 0.03

State = Literal["idle", "waiting", "speaking", "done"]


@dataclass(frozen=True)
class Figures:
    """What an answer cost.

    Attributes:
        audio_s: length of the clip in seconds.
        ttft_s: from the samples to the first token, the model's work alone.
        tokens_per_s: see `AnswerStream`; None if all came at once.
        num_audio_tokens: A.
        num_tokens: tokens of the answer, the end symbol included.
        peak_bytes: most memory in use while answering: of the whole process, whose other models count too, or on a
            GPU of what PyTorch handed out; None on a device that is neither.
        memory: which of the two.
        truncated: whether the limit ended the answer rather than the model.
    """

    audio_s: float
    ttft_s: float
    tokens_per_s: float | None
    num_audio_tokens: int
    num_tokens: int
    peak_bytes: int | None
    memory: MemoryKind | None
    truncated: bool


@dataclass(frozen=True)
class Reply:
    """What is to be seen of one model: its answer so far, and its figures when it is done."""

    model: str
    text: str = ""
    state: State = "idle"
    figures: Figures | None = None


class Panel:
    """The models of a page, asked one at a time however many people ask.

    Args:
        models: by the name to show.
        max_audio_s: longest clip that is taken, in seconds.
        max_new_tokens: longest answer.
    """

    def __init__(self, models: Mapping[str, AudioLM], *, max_audio_s: float, max_new_tokens: int) -> None:
        self.models = dict(models)
        self.max_audio_s = max_audio_s
        self.max_new_tokens = max_new_tokens
        self._busy = Lock()

    def idle(self) -> list[Reply]:
        """Return the replies before anything was asked."""
        return [Reply(name) for name in self.models]

    def ask(self, audio: str | Path | None, instruction: str | None) -> Iterator[list[Reply]]:
        """Put an instruction to every model and yield all replies whenever one has grown.

        Closing the iterator stops the model.

        Args:
            audio: a file, or None where no sound was given.
            instruction: a question, or any instruction.

        Raises:
            AudioError: if there is no audio, it cannot be used, or it is longer than `max_audio_s`.
            UsageError: if there is no instruction.
        """
        instruction = (instruction or "").strip()
        if audio is None:
            raise AudioError("There is no sound yet: record some, choose a file, or take an example.")
        if not instruction:
            raise UsageError("The question is empty: write what you want to know about the sound.")
        name = Path(audio).name
        # Before hours of sound, which a small file may hold, become gigabytes of samples.
        self._refuse_long(probe(audio, name=name).duration_s)
        waveform = load_audio(audio, name=name)
        self._refuse_long(waveform.shape[0] / SAMPLE_RATE_HZ)  # a header may be wrong
        replies = [Reply(name, state="waiting") for name in self.models]
        yield list(replies)
        for row, lm in enumerate(self.models.values()):
            with closing(self._reply(replies[row], lm, waveform, instruction)) as grown:
                for reply in grown:
                    replies[row] = reply
                    yield list(replies)

    def _refuse_long(self, audio_s: float) -> None:
        if audio_s > self.max_audio_s:
            raise AudioError(
                f"The sound lasts {audio_s:.0f} s, and this page takes {self.max_audio_s:g} s: cut it below its "
                "waveform, or start the page with a larger `--max-audio-s`."
            )

    def _reply(self, reply: Reply, lm: AudioLM, waveform: np.ndarray, instruction: str) -> Generator[Reply]:
        with self._busy:
            # Before the stream is made: it hears the sound, and may choose a transcript, which takes seconds.
            yield (reply := replace(reply, state="speaking"))
            device = lm.model.device
            memory = memory_kind(device) if device.type in ("cpu", "cuda") else None
            if memory:
                reset_peak(device)
            with closing(lm.stream(waveform, instruction, max_new_tokens=self.max_new_tokens)) as stream:
                shown_s = 0.0
                for piece in stream:
                    reply = replace(reply, text=reply.text + piece)
                    if perf_counter() - shown_s >= _REDRAW_S:
                        yield reply
                        shown_s = perf_counter()
                peak = peak_bytes(device) if memory else None
                yield replace(reply, state="done", figures=_figures(stream, waveform, peak, memory))


def _figures(stream: AnswerStream, waveform: np.ndarray, peak: int | None, memory: MemoryKind | None) -> Figures:
    assert stream.answer is not None
    assert stream.ttft_s is not None
    return Figures(
        audio_s=waveform.shape[0] / SAMPLE_RATE_HZ,
        ttft_s=stream.ttft_s,
        tokens_per_s=stream.tokens_per_s,
        num_audio_tokens=stream.num_audio_tokens,
        num_tokens=stream.answer.num_tokens,
        peak_bytes=peak,
        memory=memory,
        truncated=stream.answer.truncated,
    )


def names_of(folders: list[Path]) -> list[str]:
    """Name model folders by the shortest ends of their paths that differ: `tune`, or `a/tune` and `b/tune`.

    Raises:
        UsageError: if a folder is named twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for row, folder in enumerate(folders):
        if parts[row] in parts[:row]:
            raise UsageError(f"{folder}: is named twice; name each model once")
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return []
