"""What BEATs and EAT share: patches of 16 x 16 fbank values, and clips of any length encoded block by block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PATCH = 16
"""A patch is 16 fbank frames (160 ms) by 16 mel bins; patches do not overlap."""

BLOCK_PATCHES = 188
"""Patches in time that are encoded together: 30.08 s, so that the 30 s SALMONN gives a sound encoder are one block."""


def num_sound_frames(num_fbank_frames: int, num_mel_bins: int = 128) -> int:
    """Count the frames T' of a sound encoder: 8 mel bands for each whole 160 ms. 998 (10 s) give 496."""
    return num_fbank_frames // PATCH * (num_mel_bins // PATCH)


def encode_blocks(
    features: Tensor, mask: Tensor | None, hidden_size: int, encode: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Encode clips in blocks of 30.08 s that do not attend to each other.

    Args:
        features: (B, F, M) fbank features, right-padded.
        mask: (B, F), 1 on real frames; None when nothing is padded.
        hidden_size: D.
        encode: takes a block (b, P * 16, M) of those clips that reach into it and which of its frames are real,
            (b, P * M / 16), at least one of each clip; returns the block encoded, (b, P * M / 16, D).

    Returns:
        frames (B, T', D), zero where padded, with T' = `num_sound_frames(F, M)`, and their mask (B, T'), bool. Frames
        go by time, then by mel band: the bands of one patch in time follow each other. A patch that is not full is
        left out, so a clip of less than 16 fbank frames has no frame.
    """
    batch_size, num_features, num_mels = features.shape
    lengths = features.new_full((batch_size,), num_features, dtype=torch.long) if mask is None else mask.sum(dim=1)
    patches, bands = lengths // PATCH, num_mels // PATCH
    num_frames = num_sound_frames(num_features, num_mels)
    frames_mask = torch.arange(num_frames, device=lengths.device)[None] < (patches * bands)[:, None]
    frames = features.new_zeros(batch_size, num_frames, hidden_size)
    for start in range(0, int(patches.max()), BLOCK_PATCHES):
        # Clips that end before this block take no part in it: a long neighbour costs a short clip nothing.
        clips = (patches > start).nonzero().squeeze(1)
        end = min(start + BLOCK_PATCHES, int(patches.max()))
        first, last = start * bands, end * bands
        real = frames_mask[clips, first:last]
        encoded = encode(features[clips, start * PATCH : end * PATCH], real)
        frames[clips, first:last] = (encoded * real[:, :, None]).to(frames.dtype)
    return frames, frames_mask


def check_features(features: Tensor, num_mel_bins: int) -> None:
    """Refuse features (B, F, M) that are not of the encoder's own front end.

    Raises:
        ValueError: if M is not `num_mel_bins`.
    """
    if features.dim() != 3 or features.shape[2] != num_mel_bins:
        raise ValueError(
            f"sound_features has shape {[*features.shape]}, the sound encoder wants (B, F, {num_mel_bins}); "
            "use the feature extractor saved with it"
        )
