"""What sounds in a clip, named."""

from __future__ import annotations

import torch

from stapes.model.sound_namer import SoundNamer


def test_long_clips_are_named_alike_in_16_bits() -> None:
    torch.manual_seed(0)
    namer = SoundNamer(8, 16, dropout=0.0).eval()
    namer.norm_in.weight.data.fill_(4.0)
    namer.norm_in.bias.data[0] = 100.0  # a channel whose mean is large beside its deviation
    frames, mask = torch.randn(1, 20_000, 8), torch.ones(1, 20_000, dtype=torch.bool)
    to_sound, table = torch.full((1, 1, 20_000), 1 / 20_000), torch.randn(5, 16)
    with torch.no_grad():
        _, exact = namer(frames, mask, to_sound, table)
        _, half = namer.half()(frames.half(), mask, to_sound.half(), table.half())
    torch.testing.assert_close(half.float(), exact, atol=0.2, rtol=0.05)
