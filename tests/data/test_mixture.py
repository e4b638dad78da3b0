from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import DataLoader, Dataset

from stapes.data.mixture import Draw, MixtureBatchSampler


def lengths(*sizes: int, seed: int = 0) -> list[list[float]]:
    """Random durations of 1 to 20 s, a list for each corpus."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(1, 20, size).tolist() for size in sizes]


def sampler(durations: list[list[float]], weights: list[float], **changes: Any) -> MixtureBatchSampler:
    settings = {"batch_size": 4, "accumulation_steps": 1, "world_size": 1, "num_steps": 50, "seed": 0}
    return MixtureBatchSampler(durations, weights, **{**settings, **changes})


def draws(batches: MixtureBatchSampler) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


def steps(batches: MixtureBatchSampler, step_size: int) -> list[list[tuple[int, int, int]]]:
    drawn = draws(batches)
    return [sorted(drawn[start : start + step_size]) for start in range(0, len(drawn), step_size)]


def test_gives_the_batches_that_were_asked_for() -> None:
    batches = sampler(lengths(30, 20), [3, 1], batch_size=5, accumulation_steps=2, world_size=3, num_steps=7)
    assert len(batches) == 2 * 3 * 7
    assert [len(batch) for batch in batches] == [5] * 42


@pytest.mark.parametrize(
    ("weights", "counts"),
    [([3, 1], [150, 50]), ([0.5, 0.3, 0.2], [100, 60, 40]), ([1], [200]), ([1e-9, 1], [0, 200])],
)
def test_shares_are_exact(weights: list[float], counts: list[int]) -> None:
    drawn = draws(sampler(lengths(*[40] * len(weights)), weights))
    assert [sum(draw.corpus == corpus for draw in drawn) for corpus in range(len(weights))] == counts


def test_shares_hold_all_along() -> None:
    """Counted at the ends of windows, inside which lengths decide."""
    weights = np.array([6, 1, 1]) / 8
    # Corpora so large that no pass ends: windows are 32 steps of 4 each.
    drawn = draws(sampler(lengths(2000, 2000, 2000), list(weights), num_steps=320))
    for end in range(128, 1281, 128):
        counts = np.bincount([draw.corpus for draw in drawn[:end]], minlength=3)
        assert np.abs(counts - weights * end).max() <= 0.5 + 6 / 8 * 3 / 2


def test_every_sample_comes_once_before_any_comes_again() -> None:
    # 5·5 draws a pass of the first corpus: passes end where steps end. Those of the second end inside steps.
    batches = sampler(lengths(25, 7), [5, 1], batch_size=6, num_steps=40)
    for corpus, size in enumerate((25, 7)):
        mine = [(number // 6, draw) for number, draw in enumerate(draws(batches)) if draw.corpus == corpus]
        for start in range(0, len(mine), size):
            taken = mine[start : start + size]
            # What a pass shares a step with may stand in either order inside that step.
            edge = {taken[0][0], taken[-1][0]}
            inner = [draw for step, draw in taken if step not in edge]
            assert {draw.draw for draw in inner} <= {start // size}
            assert len({draw.index for draw in inner}) == len(inner)
            if corpus == 0 and len(taken) == size:
                assert sorted(draw.index for _, draw in taken) == list(range(size))


def test_draw_counts_how_often_a_sample_came_before() -> None:
    seen: Counter[tuple[int, int]] = Counter()
    # 3 samples in batches of 4: a step holds a sample twice.
    for draw in draws(sampler(lengths(3, 11), [1, 1])):
        assert draw.draw == seen[draw.corpus, draw.index]
        seen[draw.corpus, draw.index] += 1
    assert seen.total() == 200
    assert max(seen.values()) - min(seen[0, index] for index in range(3)) <= 1


def test_batches_hold_clips_of_like_length() -> None:
    durations = lengths(4000)
    batches = sampler(durations, [1], batch_size=8, num_steps=500)
    padded = sum(8 * max(durations[0][draw.index] for draw in batch) for batch in batches)
    real = sum(durations[0][draw.index] for draw in draws(batches))
    # Random batches of uniform lengths of 1 to 20 s would be padded to 1.7 times their length.
    assert padded / real < 1.1
    means = [np.mean([durations[0][draw.index] for draw in batch]) for batch in batches]
    # Short and long batches follow each other in random order.
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15


def test_processes_work_on_like_lengths_at_the_same_time() -> None:
    durations = lengths(4000)
    batches = list(sampler(durations, [1], batch_size=4, accumulation_steps=4, world_size=2, num_steps=100))
    longest = [max(durations[0][draw.index] for draw in batch) for batch in batches]
    waiting = [abs(first - second) for first, second in zip(longest[::2], longest[1::2], strict=True)]
    assert np.mean(waiting) < 0.5


def test_passes_differ_in_order_and_in_who_meets_whom() -> None:
    drawn = draws(sampler(lengths(40), [1], num_steps=20))
    first, second = [draw.index for draw in drawn[:40]], [draw.index for draw in drawn[40:80]]
    together = [{frozenset(order[i : i + 4]) for i in range(0, 40, 4)} for order in (first, second)]
    assert first != second
    assert len(together[0] & together[1]) < 5


def test_the_order_is_a_function_of_the_seed() -> None:
    durations = lengths(40, 30)
    assert list(sampler(durations, [2, 1], seed=5)) == list(sampler(durations, [2, 1], seed=5))
    again = sampler(durations, [2, 1], seed=5)
    assert list(again) == list(again)
    assert list(sampler(durations, [2, 1], seed=5)) != list(sampler(durations, [2, 1], seed=6))


def test_a_shorter_run_of_the_same_order_begins_alike() -> None:
    """Up to its last window, whose end is the run's."""
    durations = lengths(500)
    assert list(sampler(durations, [1], num_steps=32)) == list(sampler(durations, [1], num_steps=64))[:32]


@pytest.mark.parametrize(
    "split",
    [
        {"batch_size": 8},
        {"batch_size": 2, "accumulation_steps": 4},
        {"batch_size": 2, "world_size": 4},
        {"batch_size": 1, "accumulation_steps": 4, "world_size": 2},
    ],
)
def test_a_step_holds_the_same_clips_however_it_is_split(split: dict[str, int]) -> None:
    durations = lengths(60, 30)
    assert steps(sampler(durations, [3, 1], **split), 8) == steps(sampler(durations, [3, 1], batch_size=8), 8)


def test_processes_share_the_batches_between_them() -> None:
    settings = {"batch_size": 2, "accumulation_steps": 3, "world_size": 4, "num_steps": 5}
    whole = list(sampler(lengths(50), [1], **settings))
    same: Any = sampler(lengths(50), [1], **settings)
    shards = [list(BatchSamplerShard(same, 4, rank)) for rank in range(4)]
    assert [len(shard) for shard in shards] == [15] * 4
    assert [batch for together in zip(*shards, strict=True) for batch in together] == whole


class Listening(Dataset[Draw]):
    """Gives draws back and notes which were asked for."""

    def __init__(self) -> None:
        self.heard: list[Draw] = []

    def __len__(self) -> int:
        return 50

    def __getitem__(self, draw: Draw) -> Draw:
        self.heard.append(draw)
        return draw


def test_resuming_skips_batches_without_loading_them() -> None:
    batches = sampler(lengths(50), [1], num_steps=10)
    examples = Listening()
    loader = prepare_data_loader(DataLoader(examples, batch_sampler=batches, collate_fn=list))
    resumed = skip_first_batches(loader, 7)
    assert list(resumed) == list(batches)[7:]
    assert examples.heard == draws(batches)[28:]


def test_a_later_pass_follows_its_own_permutation() -> None:
    """No two passes are alike, and different corpora are not shuffled alike."""
    drawn = draws(sampler([[1.0] * 12, [1.0] * 12], [1, 1], batch_size=24, num_steps=6))
    orders = [
        tuple(draw.index for draw in drawn[start : start + 24] if draw.corpus == corpus)
        for start in range(0, 144, 24)
        for corpus in (0, 1)
    ]
    assert len(set(orders)) == 12
    assert all(first != second for first, second in pairwise(orders))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"durations": []}, r"corpora hold \[\] samples"),
        ({"durations": [[1.0], []], "weights": [1, 1]}, r"corpora hold \[1, 0\] samples; each must hold some"),
        ({"weights": [1, 2]}, r"weights are \[1, 2\]; wanted 1 finite numbers above 0"),
        ({"weights": [0]}, r"weights are \[0\]"),
        ({"batch_size": 0}, "batch_size is 0; wanted at least 1"),
        ({"num_steps": -1}, "num_steps is -1"),
    ],
)
def test_refuses_what_makes_no_mixture(changes: dict[str, Any], message: str) -> None:
    arguments = {"durations": [[1.0, 2.0]], "weights": [1]}
    with pytest.raises(ValueError, match=message):
        sampler(**{**arguments, **changes})
