"""Which samples make up which batch: corpora mixed by share, clips of like length together, an order one can resume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

_WINDOW_STEPS = 32
"""Steps whose samples are sorted by length together; then the steps are shuffled, and the next window follows."""

_RANK_JITTER = 0.5
"""By how many steps a clip's rank is moved at most, up or down, so that it meets other neighbours in each pass."""


class Draw(NamedTuple):
    """One sample taken from the mixture.

    Attributes:
        corpus: number of the manifest.
        index: number of the sample in it.
        draw: how many times this sample was drawn before.
    """

    corpus: int
    index: int  # type: ignore[override]  # tuple's method of this name is not missed here
    draw: int


class MixtureBatchSampler:
    """Batches of draws for a DataLoader's `batch_sampler`; each iteration gives the same ones.

    - Corpora take turns by their weights, evenly: after t draws a corpus of share w has been drawn w·t times, give or
      take 1/2 + w·(number of corpora)/2.
    - Each corpus is gone through in a new random order again and again: no sample comes a second time before all others
      of its corpus came once, except inside one optimiser step.
    - A step is made of clips of like length. Which clips make up a step depends on how many it takes in all, not on how
      these are split into processes, accumulation and batches, so that these can be changed for one another. Inside a
      step they are sorted: the batches that `world_size` processes work on at the same time are alike.
    - The order is a function of the arguments alone, equal in all processes, and no audio is touched to make it
      (10 million draws took 8 s on one core). A run resumes by skipping batches.

    Own code because none we know of gives all of this: Lhotse's bucketing samplers mix corpora at random and have to be
    restored from a state, and none tells how often a sample came before, which names one of its cached versions.

    Args:
        durations: seconds of each sample, corpus by corpus.
        weights: share of the draws of each corpus; they are scaled to a sum of 1.
        batch_size: samples a batch.
        accumulation_steps: batches of one process in an optimiser step.
        world_size: processes; of W the one of rank r is given batches r, r + W, r + 2·W, … by accelerate.
        num_steps: optimiser steps.
        seed: of the order.

    Raises:
        ValueError: if a corpus is empty, or a weight or count not above 0.
    """

    drop_last = False  # asked for, with batch_size, by accelerate's BatchSamplerShard

    def __init__(
        self,
        durations: Sequence[Sequence[float]],
        weights: Sequence[float],
        batch_size: int,
        accumulation_steps: int,
        world_size: int,
        num_steps: int,
        seed: int,
    ) -> None:
        if not durations or not all(len(corpus) for corpus in durations):
            raise ValueError(f"corpora hold {[len(corpus) for corpus in durations]} samples; each must hold some")
        if len(weights) != len(durations) or not all(weight > 0 and math.isfinite(weight) for weight in weights):
            raise ValueError(f"weights are {list(weights)}; wanted {len(durations)} finite numbers above 0")
        counts = {"batch_size": batch_size, "accumulation_steps": accumulation_steps, "world_size": world_size}
        for name, count in {**counts, "num_steps": num_steps}.items():
            if count < 1:
                raise ValueError(f"{name} is {count}; wanted at least 1")
        self.batch_size = batch_size
        self.seed = seed
        self._durations = [np.asarray(corpus, dtype=np.float64) for corpus in durations]
        self._shares = np.asarray(weights, dtype=np.float64) / math.fsum(weights)
        self._num_batches = num_steps * accumulation_steps * world_size
        self._step_size = batch_size * accumulation_steps * world_size
        self._num_steps = num_steps

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        corpora, indices, draws = self._order
        for start in range(0, self._num_batches * self.batch_size, self.batch_size):
            rows = slice(start, start + self.batch_size)
            columns = (corpora[rows].tolist(), indices[rows].tolist(), draws[rows].tolist())
            yield [Draw(*row) for row in zip(*columns, strict=True)]

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Corpus, index and draw count of all draws, batch after batch."""
        corpora = self._take_turns()
        indices = np.empty_like(corpora)
        # Windows end where a corpus has been gone through, or sorting would mix its passes.
        ends = {0, self._num_steps}
        for corpus, durations in enumerate(self._durations):
            size = len(durations)
            places = np.flatnonzero(corpora == corpus)
            passes = [
                np.random.default_rng((self.seed, corpus, number)).permutation(size)
                for number in range(-(-len(places) // size))
            ]
            indices[places] = np.concatenate([*passes, np.empty(0, np.int64)])[: len(places)]
            for step, place_in_step in zip(*np.divmod(places[size::size], self._step_size), strict=True):
                ends |= {int(step), int(step) + 1} if place_in_step else {int(step)}
        order = self._sort_windows(corpora, indices, sorted(ends))
        corpora, indices = corpora[order], indices[order]
        return corpora, indices, self._count_earlier(corpora, indices)

    def _take_turns(self) -> np.ndarray:
        """The corpus of each draw: the k-th draw of a corpus of share w has its place at (k + 1/2) / w."""
        num_draws, num_corpora = self._num_steps * self._step_size, len(self._shares)
        places = [(np.arange(math.ceil(share * (num_draws + num_corpora)) + 1) + 0.5) / share for share in self._shares]
        corpora = np.repeat(np.arange(num_corpora, dtype=np.int32), [len(own) for own in places])
        return corpora[np.argsort(np.concatenate(places), kind="stable")[:num_draws]]

    def _sort_windows(self, corpora: np.ndarray, indices: np.ndarray, ends: list[int]) -> np.ndarray:
        """Bring clips of like length into the same steps, window by window, and shuffle the steps of each window."""
        rng = np.random.default_rng((self.seed, len(self._durations)))
        order = []
        for start, end in pairwise(ends):
            parts = -(-(end - start) // _WINDOW_STEPS)
            for first, last in pairwise([start + (end - start) * part // parts for part in range(parts + 1)]):
                window = np.arange(first * self._step_size, last * self._step_size)
                lengths = np.empty(len(window))
                for corpus, durations in enumerate(self._durations):
                    mine = corpora[window] == corpus
                    lengths[mine] = durations[indices[window[mine]]]
                by_length = np.argsort(lengths, kind="stable")
                moves = rng.uniform(-_RANK_JITTER, _RANK_JITTER, len(window)) * self._step_size
                steps = by_length[np.argsort(np.arange(len(window)) + moves)].reshape(last - first, self._step_size)
                # Inside a step by length again: its batches run side by side or one after another.
                steps = np.take_along_axis(steps, np.argsort(lengths[steps], axis=1, kind="stable"), axis=1)
                order.append(window[rng.permutation(steps).ravel()])
        return np.concatenate(order)

    def _count_earlier(self, corpora: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Tell for each draw how many of the same sample come before it."""
        firsts = np.cumsum([0, *(len(durations) for durations in self._durations)])
        samples = firsts[corpora] + indices
        by_sample = np.argsort(samples, kind="stable")
        totals = np.bincount(samples, minlength=firsts[-1])
        counts = np.empty(len(samples), np.int32)
        counts[by_sample] = np.arange(len(samples)) - np.repeat(np.cumsum(totals) - totals, totals)
        return counts
