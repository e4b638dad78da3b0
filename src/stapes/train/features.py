"""An on-disk cache of a frozen encoder's output: what does not learn need not be computed twice."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..data.mixture import Draw
from ..errors import StapesError
from ..model import StapesForConditionalGeneration

if TYPE_CHECKING:
    from .examples import Examples


class FeatureCache:
    """Encoder frames (T, D) in float16, one `.npy` file a clip and version.

    Float16 halves the disk; after the encoder's last LayerNorm values are of order 1, so it costs a relative error of
    5e-4, far below that of any augmentation.

    Args:
        folder: where the files are; one folder for each encoder, see `encoder_identity`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, path: Path) -> Tensor:
        """Read the frames (T, D) stored at `path`, as float32.

        Raises:
            StapesError: if the file is gone or damaged.
        """
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False)).float()
        except (OSError, ValueError, EOFError) as error:
            raise StapesError(
                f"{path}: stored encoder output cannot be read ({error}); delete the file, and the same command makes "
                "it again"
            ) from error

    def fill(
        self, model: StapesForConditionalGeneration, examples: Examples, draws: Iterable[Draw], share: tuple[int, int]
    ) -> int:
        """Encode what is not stored yet.

        Args:
            model: its frozen encoders are used.
            examples: where the features of a draw come from.
            draws: all draws of the coming training.
            share: (rank, number of processes); each process fills its part.

        Returns:
            how many clips were encoded here.
        """
        wanted: dict[Path, Draw] = {}
        seen: set[tuple[int, int, int]] = set()
        for draw in draws:
            version = (draw.corpus, draw.index, examples.version(draw))
            if version not in seen:
                seen.add(version)
                wanted.setdefault(examples.cache_path(draw), draw)
        # Shared out by place among all, not among the missing: that list shrinks while another process fills its part.
        rank, num_processes = share
        mine = [(path, draw) for path, draw in sorted(wanted.items())[rank::num_processes] if not path.exists()]
        progress = track(mine, "encoding clips once", console=Console(stderr=True), disable=not mine or rank > 0)
        for path, draw in progress:
            _save(path, _encode_alone(model, examples.features(draw)))
        return len(mine)


def feature_path(folder: Path, audio: Sequence[Path], augmentation: tuple[Any, ...] | None) -> Path:
    """Name the cache file of a clip: it changes when the audio file or its augmentation does."""
    digest = hashlib.sha256()
    for path in audio:
        state = path.stat()
        digest.update(f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}\n".encode())
    digest.update(repr(augmentation).encode())
    name = digest.hexdigest()[:32]
    return folder / name[:2] / f"{name}.npy"


def encoder_identity(model: StapesForConditionalGeneration, feature_extractor: Any) -> str:
    """Name encoders by weights, dtype and front end, so that no other's output is ever taken for theirs."""
    digest = hashlib.sha256(feature_extractor.to_json_string().encode())
    config = model.speech_encoder.config
    # What the weights do not show.
    if (tap_layer := model.speech_encoder.tap_layer) is not None:
        digest.update(f"tap {tap_layer}".encode())
    digest.update(f"{config.encoder_attention_heads} {config.activation_function} {config.scale_embedding}".encode())
    weights = {**model.speech_encoder.state_dict()}
    if model.sound_encoder is not None:
        digest.update(model.sound_encoder.config.to_json_string(use_diff=False).encode())
        weights |= {f"sound_encoder.{name}": tensor for name, tensor in model.sound_encoder.state_dict().items()}
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def _encode_alone(model: StapesForConditionalGeneration, features: Mapping[str, Tensor]) -> np.ndarray:
    """Encode one clip's features: (T, D), float16.

    Not in a batch: its neighbours would depend on what is stored already, and products of another size round
    differently, so that a run cut off while it stored features would end with other weights. On a CPU it costs no time
    (`benchmarks/throughput.py`); on a GPU it will.
    """
    frames, _ = model.encode(**{name: tensor[None].to(model.device) for name, tensor in features.items()})
    return frames[0].to("cpu", torch.float16).numpy()


def _save(path: Path, frames: np.ndarray) -> None:
    if not np.isfinite(frames).all():
        raise StapesError(
            f"{path}: the encoder's output is not finite in float16; set `feature_cache: false` for this stage"
        )
    # numpy's own writing to a file hides that the disk is full.
    content = io.BytesIO()
    np.save(content, frames, allow_pickle=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.getbuffer())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
