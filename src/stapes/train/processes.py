"""This process among those of a distributed run."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

_PATIENCE = timedelta(days=2)
"""How long processes wait for the first one, which alone decodes all corpora before a run; torch's own are minutes."""


def this_process() -> PartialState:
    """Find this process's rank, device and companions; where there is no GPU they are connected through gloo.

    Left to itself, `PartialState` takes the processes of a machine without a GPU for separate runs.
    """
    on_cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=on_cpu, timeout=_PATIENCE)


def device_type() -> str:
    """Name the kind of device this process computes on: `cuda`, `cpu`, …"""
    device = this_process().device
    assert device is not None  # chosen when the state is made
    return device.type
