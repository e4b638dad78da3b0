"""The part of a CTC compressor that hears letters, not pieces of words."""

from __future__ import annotations

from string import ascii_lowercase

from torch import Tensor, nn

from .prenorm import PreNormLayer

LETTERS = f" {ascii_lowercase}'"
"""What is written with, numbered from 1 on."""

BLANK, SPACE = 0, 1
"""Numbers of CTC's blank and of the space between words."""

HEAD_WIDTH = 64
"""Of an attention head."""

CONTEXT = 3
"""Encoder frames that the convolution sees at once."""


class LetterHearer(nn.Module):
    """Encoder frames → scores of blank and letters, one step for each frame.

    A few hours of speech hold each letter many thousand times and most words never: letters are soon learnt, and spell
    what was never heard. They come up to 20 times a second, so no frames can be taken together.

    Source: CTC over characters (Graves et al. 2006; Graves and Jaitly 2014, Towards End-to-End Speech Recognition),
    beside one over pieces as in hierarchical multitask CTC (Sanabria and Metze 2018, arXiv 1807.07104). Where we
    differ: neither of the two reads what the other hears.

    Args:
        encoder_hidden_size: D.
        width: W, of the hidden state; a multiple of 64.
        dropout: while it learns.
    """

    def __init__(self, encoder_hidden_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(encoder_hidden_size)
        self.conv = nn.Conv1d(encoder_hidden_size, width, CONTEXT, padding=CONTEXT // 2)
        self.layer = PreNormLayer(width, width // HEAD_WIDTH, 4 * width, dropout)
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1 + len(LETTERS))

    def forward(self, frames: Tensor, frames_mask: Tensor) -> Tensor:
        """Score all letters at each frame: (B, T, D) and its mask (B, T) → (B, T, 1 + 28), blank first."""
        # Zeros past a clip's end, in a batch as alone, where the convolution pads.
        hidden = self.norm_in(frames) * frames_mask[:, :, None]
        hidden = nn.functional.gelu(self.conv(hidden.transpose(1, 2)).transpose(1, 2))
        return self.out(self.norm_out(self.layer(hidden, frames_mask)))


def letter_numbers(words: str) -> list[int]:
    """Spell words as numbers of `LETTERS` from 1 on.

    Raises:
        ValueError: if anything but a to z, the apostrophe and spaces is in `words`.
    """
    return [1 + LETTERS.index(letter) for letter in words]
