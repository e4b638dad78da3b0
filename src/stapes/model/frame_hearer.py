"""The parts of a CTC compressor that hear letters or phones, not pieces of words."""

from __future__ import annotations

from torch import Tensor, nn

from .prenorm import PreNormLayer

HEAD_WIDTH = 64
"""Of an attention head."""

CONTEXT = 3
"""Encoder frames that the convolution sees at once."""


class FrameHearer(nn.Module):
    """Encoder frames → scores of blank and letters, or blank and phones, one step for each frame.

    A few hours of speech hold each letter many thousand times and most words never: letters are soon learnt, and spell
    what was never heard. English spells one phone in many ways, so that phones are learnt sooner still, but what they
    are in writing only a list of pronounced words can tell. Either come up to 20 times a second, so no frames can be
    taken together.

    Source: CTC over characters (Graves et al. 2006; Graves and Jaitly 2014, Towards End-to-End Speech Recognition) and
    over phones with a lexicon (Miao et al. 2015, EESEN, arXiv 1507.08240), beside one over pieces as in hierarchical
    multitask CTC (Sanabria and Metze 2018, arXiv 1807.07104). Where we differ: none of them reads what another hears.

    Args:
        encoder_hidden_size: D.
        width: W, of the hidden state; a multiple of 64.
        num_symbols: N, letters or phones, the space among them.
        dropout: while it learns.
    """

    def __init__(self, encoder_hidden_size: int, width: int, num_symbols: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(encoder_hidden_size)
        self.conv = nn.Conv1d(encoder_hidden_size, width, CONTEXT, padding=CONTEXT // 2)
        self.layer = PreNormLayer(width, width // HEAD_WIDTH, 4 * width, dropout)
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1 + num_symbols)

    def forward(self, frames: Tensor, frames_mask: Tensor) -> Tensor:
        """Score all symbols at each frame: (B, T, D) and its mask (B, T) → (B, T, 1 + N), blank first."""
        # Zeros past a clip's end, in a batch as alone, where the convolution pads.
        hidden = self.norm_in(frames) * frames_mask[:, :, None]
        hidden = nn.functional.gelu(self.conv(hidden.transpose(1, 2)).transpose(1, 2))
        return self.out(self.norm_out(self.layer(hidden, frames_mask)))
