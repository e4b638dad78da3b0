"""Dynamic gradient clipping: AutoClip (Seetharaman et al. 2020, arXiv 2007.14469)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class AutoClip:
    """The p-th percentile of the gradient norms seen so far, the current one included.

    As in the paper (section 3) there is no warm-up: the first gradient equals its own percentile and passes unclipped,
    and the limit means more with every step. Unlike the paper, which keeps every norm, only the last `window` norms
    count: norms fall by orders of magnitude while training, and the list stays small enough for each checkpoint.

    Args:
        percentile: in (0, 100]; the paper recommends 10, which clips about 9 of 10 gradients.
        window: how many norms count, the current one included.
        norms: norms seen before, oldest first, to go on from.

    Raises:
        ValueError: if `percentile` or `window` is out of range.
    """

    def __init__(self, percentile: float, window: int, norms: Sequence[float] = ()) -> None:
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile is {percentile}; it must be above 0 and at most 100")
        if window < 1:
            raise ValueError(f"window is {window}; it must hold at least 1 norm")
        self.percentile = percentile
        self.window = window
        self.norms = list(norms)

    def observe(self, norm: float) -> float:
        """Take in the norm of the current gradient and return what to clip it to.

        Raises:
            ValueError: if `norm` is NaN or infinite: it would stand in the history for `window` steps.
        """
        if not math.isfinite(norm):
            raise ValueError(f"norm is {norm}; only finite norms may enter the history")
        self.norms.append(norm)
        del self.norms[: -self.window]
        return float(np.percentile(self.norms, self.percentile))


class DynamicClipping(TrainerCallback, ExportableState):
    """Clip each update's gradient to `AutoClip`'s limit; `max_grad_norm` must be 0, so that the Trainer does not clip.

    The norms travel in the checkpoint's `trainer_state.json`. With `restore_callback_states_from_checkpoint=True` the
    Trainer builds this callback anew from them, so that a resumed run clips as an uninterrupted one; that is why all
    arguments are plain numbers.

    `norm` and `clip_value` are those of the last update (None before the first). `clip_value` is read by `Trainer.log`
    rather than written in `on_log`: reporters and, after a restore, all other callbacks are called before this one.

    Args:
        percentile: see `AutoClip`.
        window: see `AutoClip`.
        norms: see `AutoClip`.
    """

    def __init__(self, percentile: float, window: int, norms: Sequence[float] = ()) -> None:
        self.autoclip = AutoClip(percentile, window, norms)
        self.norm: float | None = None
        self.clip_value: float | None = None

    def state(self) -> dict[str, Any]:
        """Return the arguments that make an equal callback, as JSON holds them."""
        autoclip = self.autoclip
        arguments = {"percentile": autoclip.percentile, "window": autoclip.window, "norms": list(autoclip.norms)}
        return {"args": arguments, "attributes": {}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Refuse set-ups in which this would clip wrongly.

        Raises:
            ValueError: if the Trainer clips as well, or no process holds whole gradients (FSDP, DeepSpeed, Megatron).
        """
        if args.max_grad_norm:
            raise ValueError(f"max_grad_norm is {args.max_grad_norm}; dynamic clipping needs 0, or it clips twice")
        distributed = AcceleratorState().distributed_type
        if distributed in {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}:
            raise ValueError(f"dynamic clipping needs whole gradients, which {distributed.value} shards; clip fixed")

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Clip the gradients of `model` in place.

        The Trainer has measured the norm for its log just before this, which has also undone the scaling of fp16
        (`accelerator.clip_grad_norm_` a second time would raise), and DDP has averaged the gradients, so that every
        process sees the same norm. A NaN or infinite gradient stays as it is, for the fp16 scaler to skip the update
        or the log to show it, and does not enter the history.
        """
        assert model is not None
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.norm = norm.item()
        if math.isfinite(self.norm):
            self.clip_value = self.autoclip.observe(self.norm)
            clip_grads_with_norm_(parameters, self.clip_value, norm)
