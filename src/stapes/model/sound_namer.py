"""The part of a CTC compressor that puts words to sounds in which nothing is said."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SOUND_WIDTH = 192
"""Of the hidden layer: what sounds is told from a few hundred clips, for which 512 did no better (docs/log.md)."""

LOGIT_SCALE = 3.0
"""By how much a word's logit is multiplied before the loss and the LLM see it: rows of an LLM's table are short."""


class SoundNamer(nn.Module):
    """Frames of a slot and of its whole clip → the words of captions, as posteriors over the LLM's own embeddings.

    Each slot sees the mean of its own frames, and mean and standard deviation of all frames of the clip: what sounds is
    told by more than a sixth of a second.

    Source: the counterpart to `CTCCompressor`, whose posterior-weighted embeddings follow Wav2Prompt (Deng et al. 2024,
    arXiv 2406.00522); words are learnt as the tags of an audio tagger would be, a softmax over all of them.

    Args:
        input_width: D, of the frames.
        llm_width: D_llm, of the LLM's embeddings.
        dropout: behind the hidden layer.
    """

    def __init__(self, input_width: int, llm_width: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(input_width)
        self.pool = nn.Linear(3 * input_width, SOUND_WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.to_llm = nn.Linear(SOUND_WIDTH, llm_width)
        self.norm_llm = nn.LayerNorm(llm_width)

    def forward(self, frames: Tensor, frames_mask: Tensor, to_sound: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Name what sounds in each slot.

        Args:
            frames: (B, T, D) at 50 Hz.
            frames_mask: (B, T), True on real frames.
            to_sound: (B, A, T) weights of the frames in each slot, see `sound_slots`.
            table: (C, D_llm) embeddings of the words.

        Returns:
            hidden (B, A, `SOUND_WIDTH`) and the logits of the words (B, A, C).
        """
        frames = self.norm_in(frames) * frames_mask[:, :, None]
        num_frames = frames_mask.sum(dim=1, keepdim=True).clamp(min=1)
        # Sums over a clip leave the range of float16, and their difference the digits of either 16-bit format.
        exact = frames.float()
        mean = exact.sum(dim=1) / num_frames
        variance = exact.square().sum(dim=1) / num_frames - mean.square()
        clip = torch.cat([mean, (variance.clamp(min=0) + 1e-6).sqrt()], dim=-1).to(frames.dtype)
        slots = to_sound @ frames
        pooled = torch.cat([slots, clip[:, None].expand(-1, slots.shape[1], -1)], dim=-1)
        hidden = self.dropout(nn.functional.silu(self.pool(pooled)))
        return hidden, LOGIT_SCALE * (self.norm_llm(self.to_llm(hidden)) @ table.T)
