from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from stapes.train.clipping import AutoClip, DynamicClipping


@pytest.mark.parametrize(
    ("percentile", "window", "limits"),
    [
        # Sorted after each: 4 | 2 4 | 1 2 4 | 1 2 3 4; the p-th percentile lies p/100·(n-1) places above the least.
        (10, 100, [4.0, 2.2, 1.2, 1.3]),
        (50, 100, [4.0, 3.0, 2.0, 2.5]),
        (100, 100, [4.0, 4.0, 4.0, 4.0]),
        # The last two: 4 | 2 4 | 1 2 | 1 3.
        (10, 2, [4.0, 2.2, 1.1, 1.2]),
        (10, 1, [4.0, 2.0, 1.0, 3.0]),
    ],
)
def test_the_limit_is_the_percentile_of_the_norms_so_far(percentile: float, window: int, limits: list[float]) -> None:
    autoclip = AutoClip(percentile, window)
    assert [autoclip.observe(norm) for norm in (4.0, 2.0, 1.0, 3.0)] == pytest.approx(limits)


def test_the_history_goes_on_from_norms_seen_before() -> None:
    whole, first = AutoClip(25, 3), AutoClip(25, 3)
    limits = [whole.observe(norm) for norm in (5.0, 1.0, 4.0, 2.0, 3.0)]
    for norm in (5.0, 1.0, 4.0):
        first.observe(norm)
    second = AutoClip(25, 3, first.norms)
    assert [second.observe(norm) for norm in (2.0, 3.0)] == limits[3:]
    assert second.norms == [4.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"percentile": 0, "window": 1}, "percentile is 0"),
        ({"percentile": 101, "window": 1}, "percentile is 101"),
        ({"percentile": 10, "window": 0}, "window is 0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoClip(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_norm_that_is_no_number_does_not_enter_the_history(norm: float) -> None:
    autoclip = AutoClip(10, 5, [1.0])
    with pytest.raises(ValueError, match="only finite norms"):
        autoclip.observe(norm)
    assert autoclip.norms == [1.0]


def layer(*gradient: float) -> nn.Linear:
    """A layer without bias whose weights carry this gradient."""
    made = nn.Linear(len(gradient), 1, bias=False)
    made.weight.grad = torch.tensor([gradient])
    return made


def clip(callback: DynamicClipping, model: nn.Module) -> None:
    some: Any = SimpleNamespace()
    callback.on_pre_optimizer_step(some, TrainerState(), TrainerControl(), model=model)


def test_gradients_are_scaled_to_the_limit() -> None:
    callback = DynamicClipping(percentile=50, window=10)
    first, second = layer(3.0, 4.0), layer(6.0, 8.0)
    clip(callback, first)
    # The first norm is its own percentile.
    assert (callback.norm, callback.clip_value) == (5.0, 5.0)
    assert first.weight.grad is not None
    assert first.weight.grad.tolist()[0] == pytest.approx([3.0, 4.0], rel=1e-5)
    clip(callback, second)
    assert (callback.norm, callback.clip_value) == (10.0, 7.5)
    assert second.weight.grad is not None
    assert second.weight.grad.tolist()[0] == pytest.approx([4.5, 6.0], rel=1e-5)


def test_the_norm_is_that_of_all_gradients_together() -> None:
    callback = DynamicClipping(percentile=50, window=10)
    model = nn.ModuleList([layer(2.0, 4.0), layer(4.0), nn.Linear(1, 1)])
    clip(callback, model)
    assert callback.norm == 6.0


def test_its_state_makes_an_equal_callback() -> None:
    callback = DynamicClipping(percentile=30, window=4)
    for norm in (0.1, 7.3, 2.9, 1.0 / 3.0, 5.0):
        clip(callback, layer(norm))
    again = DynamicClipping(**json.loads(json.dumps(callback.state()))["args"])
    clip(callback, layer(2.0))
    clip(again, layer(2.0))
    assert again.clip_value == callback.clip_value
    assert again.autoclip.norms == callback.autoclip.norms


def test_an_overflow_in_fp16_skips_the_update_and_leaves_the_history_alone() -> None:
    """With torch's own scaler: unscaled before clipping, as the Trainer does by measuring the norm."""
    model = nn.Linear(2, 1, bias=False)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.5), torch.amp.GradScaler("cpu", init_scale=1024.0)
    callback = DynamicClipping(percentile=50, window=10, norms=[2.5])
    before = model.weight.detach().clone()

    scaler.scale(model(torch.tensor([3.0, float("inf")])).sum()).backward()
    scaler.unscale_(optimizer)
    clip(callback, model)
    scaler.step(optimizer)
    scaler.update()
    assert model.weight.equal(before)
    assert (callback.norm, callback.clip_value) == (float("inf"), None)
    assert callback.autoclip.norms == [2.5]

    optimizer.zero_grad()
    scaler.scale(model(torch.tensor([3.0, 4.0])).sum()).backward()
    scaler.unscale_(optimizer)
    clip(callback, model)
    scaler.step(optimizer)
    # Norm 5 is unscaled; half-way between 2.5 and 5 is 3.75.
    assert (callback.norm, callback.clip_value) == (5.0, 3.75)
    assert (before - model.weight).tolist()[0] == pytest.approx([0.5 * 3 * 0.75, 0.5 * 4 * 0.75], rel=1e-5)


def test_clipping_twice_is_refused(tmp_path: Any) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), max_grad_norm=1.0, use_cpu=True)
    with pytest.raises(ValueError, match=r"max_grad_norm is 1\.0; dynamic clipping needs 0"):
        DynamicClipping(10, 10).on_train_begin(arguments, TrainerState(), TrainerControl())
