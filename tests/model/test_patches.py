"""Blocks of 30.08 s: who takes part in which, and that padding never comes back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stapes.model.patches import check_features, encode_blocks, num_sound_frames


@pytest.mark.parametrize(
    ("features", "mels", "frames"),
    [(0, 128, 0), (15, 128, 0), (16, 128, 8), (998, 128, 496), (2998, 128, 1496), (33, 48, 6)],
)
def test_frames_are_whole_patches(features: int, mels: int, frames: int) -> None:
    assert num_sound_frames(features, mels) == frames


def test_each_clip_takes_part_in_its_own_blocks() -> None:
    """Five clips, 3 bands: 0, 2, 188, 189 and 400 patches in time, of which 188 are encoded at once."""
    lengths = torch.tensor([15, 47, 188 * 16, 189 * 16, 400 * 16 + 9])
    features = torch.arange(5.0)[:, None, None].expand(5, 6409, 48)
    mask = torch.arange(6409)[None] < lengths[:, None]
    blocks: list[tuple[list[int], int, list[int]]] = []

    def encode(block: Tensor, real: Tensor) -> Tensor:
        blocks.append((block[:, 0, 0].int().tolist(), block.shape[1], real.sum(dim=1).tolist()))
        return block[:, :1, :2].expand(-1, real.shape[1], -1) + 10.0 * len(blocks)

    frames, frames_mask = encode_blocks(features, mask, 2, encode)
    assert blocks == [
        ([1, 2, 3, 4], 3008, [6, 564, 564, 564]),
        ([3, 4], 3008, [3, 564]),
        ([4], 384, [72]),
    ]
    assert frames.shape == (5, 1200, 2)
    assert frames_mask.sum(dim=1).tolist() == [0, 6, 564, 567, 1200]
    assert frames[3, [0, 563, 564, 566, 567], 0].tolist() == [13.0, 13.0, 23.0, 23.0, 0.0]
    assert frames[4, [0, 564, 1127, 1128, 1199], 1].tolist() == [14.0, 24.0, 24.0, 34.0, 34.0]
    assert torch.equal(frames[~frames_mask], torch.zeros(3663, 2))


def test_without_a_mask_all_is_real() -> None:
    frames, mask = encode_blocks(torch.ones(2, 40, 32), None, 1, lambda block, real: torch.ones(2, real.shape[1], 1))
    assert torch.equal(frames, torch.ones(2, 4, 1))
    assert torch.equal(mask, torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.parametrize("wrong", [torch.zeros(1, 100, 80), torch.zeros(100, 128)])
def test_features_of_another_front_end_are_refused(wrong: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"^sound_features has shape \[.*\], the sound encoder wants \(B, F, 128\); use"
    ):
        check_features(wrong, 128)
