"""Reading checkpoint files without running what is in them, and filling models without leaving anything out."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import WeightsError

Model = TypeVar("Model", bound=PreTrainedModel)


class Loaded(NamedTuple, Generic[Model]):
    """A model with a checkpoint's weights, and what of the checkpoint it does not hold: key → why."""

    model: Model
    ignored: dict[str, str]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.safetensors` file, or a file of `torch.save` as far as it holds tensors and plain values.

    Raises:
        WeightsError: if the file is missing, is neither, is cut short, holds no dict, or holds objects that only
            running code from the file could make.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file, or cut short: {error}") from error
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not the language of pickles
            raise WeightsError(f"{path}: torch cannot read it, it may be cut short or no checkpoint at all") from error
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"{path}: holds more than tensors and plain values, and stapes runs no code from checkpoints"
            f"{f' ({named[1]})' if named else ''}; where you trust the file, save only its tensors: "
            'torch.save({"cfg": dict(…), "model": checkpoint["model"]}, …)'
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: torch cannot read it, it may be cut short: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds a {type(found).__name__}, not a dict of tensors")
    return found


def fill(model: PreTrainedModel, tensors: Mapping[str, Any], source: Path, theirs: Callable[[str], str | None]) -> None:
    """Put a checkpoint's tensors into a model that has exactly their names and shapes.

    Args:
        model: its weights are overwritten.
        tensors: by the checkpoint's names.
        source: the file, for the message.
        theirs: our name of a weight → the checkpoint's; None for weights that do not come from it.

    Raises:
        WeightsError: naming every tensor that is missing, unexpected or of another shape.
    """
    weights = {
        other: (name, weight) for name, weight in model.state_dict().items() if (other := theirs(name)) is not None
    }
    complaints = [f"`{name}` is missing" for name in sorted(weights.keys() - tensors.keys())]
    complaints += [f"`{name}` is unexpected" for name in sorted(tensors.keys() - weights.keys())]
    for name in sorted(weights.keys() & tensors.keys()):
        found, wanted = tensors[name], weights[name][1]
        if not isinstance(found, Tensor) or not found.is_floating_point():
            complaints.append(f"`{name}` is no tensor of real numbers")
        elif found.shape != wanted.shape:
            complaints.append(f"`{name}` has shape {[*found.shape]}, not {[*wanted.shape]}")
    if complaints:
        raise WeightsError(
            f"{source}: does not fit {type(model).__name__}, of which {len(weights)} weights have to be there and "
            f"nothing else: {'; '.join(complaints)}"
        )
    model.load_state_dict({ours: tensors[name] for name, (ours, _) in weights.items()}, strict=False)
