"""Connectors: encoder frames in, a few LLM embeddings out."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from .configuration import ConnectorConfig
from .ctc_compressor import CTCCompressor


class WindowedQFormer(nn.Module):
    """SALMONN's window-level Q-Former: queries attend to one short window of encoder frames at a time.

    Source: SALMONN (arXiv 2310.13289), sec. 3; layers are those of BLIP-2's Q-Former with cross-attention in each.
    """

    def __init__(self, config: ConnectorConfig, encoder_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__()
        self.frames_per_window = config.frames_per_window
        self.tail = config.tail
        self.norm = nn.LayerNorm(encoder_hidden_size)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.queries_per_window, config.hidden_size))
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                cross_attention_frequency=1,
                encoder_hidden_size=encoder_hidden_size,
            )
        )
        self.projection = nn.Linear(config.hidden_size, llm_hidden_size)

    def forward(self, frames: Tensor, frames_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool each window of encoder frames into Q LLM embeddings.

        Args:
            frames: (B, T, D) encoder output at 50 Hz.
            frames_mask: (B, T), True on real frames, which come first.

        Returns:
            (B, A, D_llm) in time order, and its mask (B, A). 30 s with K=17, Q=1 gives A=89, with `tail: drop` 88.

        Raises:
            ValueError: if D is not the encoder's width.

        Unlike SALMONN a tail is kept unless `tail: drop`; its missing frames are zeros that are attended to,
        which is how SALMONN treats padding.
        """
        _check_width(frames, self.norm.normalized_shape[0])
        windows, window_mask = _windows(
            self.norm(frames) * frames_mask[:, :, None], frames_mask, self.frames_per_window, self.tail
        )
        batch_size, num_windows = windows.shape[:2]
        hidden = self.qformer(
            query_embeds=self.query_tokens.expand(batch_size * num_windows, -1, -1),
            encoder_hidden_states=windows.flatten(0, 1),
        ).last_hidden_state
        tokens = self.projection(hidden).unflatten(0, (batch_size, num_windows)).flatten(1, 2)
        return tokens, window_mask.repeat_interleave(self.query_tokens.shape[1], dim=1)


class StackedMLP(nn.Module):
    """Ultravox's projector: K frames side by side → RMSNorm → Linear → SwiGLU → RMSNorm → Linear.

    Source: Ultravox v0.5 (`UltravoxProjector` with `ln_mid`). Where we differ: a last RMSNorm after the second Linear,
    whose weight starts at the size of the LLM's own embeddings (see `assembly.build`), so that training begins with
    tokens of a scale the LLM knows.
    """

    def __init__(self, config: ConnectorConfig, encoder_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__()
        self.frames_per_window = config.frames_per_window
        self.tail = config.tail
        self.norm_in = nn.RMSNorm(encoder_hidden_size * config.frames_per_window, eps=1e-6)
        self.linear_1 = nn.Linear(encoder_hidden_size * config.frames_per_window, config.hidden_size, bias=False)
        self.norm_mid = nn.RMSNorm(config.hidden_size // 2, eps=1e-6)
        self.linear_2 = nn.Linear(config.hidden_size // 2, llm_hidden_size, bias=False)
        self.norm_out = nn.RMSNorm(llm_hidden_size, eps=1e-6)

    def forward(self, frames: Tensor, frames_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn each stack of K encoder frames into one LLM embedding.

        Args:
            frames: (B, T, D) encoder output at 50 Hz.
            frames_mask: (B, T), True on real frames, which come first.

        Returns:
            (B, A, D_llm) with A = ceil(T / K), in time order, and its mask (B, A).

        Raises:
            ValueError: if D is not the encoder's width.
        """
        _check_width(frames, self.norm_in.normalized_shape[0] // self.frames_per_window)
        stacks, stack_mask = _windows(frames * frames_mask[:, :, None], frames_mask, self.frames_per_window, self.tail)
        value, gate = self.linear_1(self.norm_in(stacks.flatten(2))).chunk(2, dim=-1)
        hidden = self.norm_mid(nn.functional.silu(gate) * value)
        return self.norm_out(self.linear_2(hidden)), stack_mask


def build_connector(
    config: ConnectorConfig, encoder_hidden_size: int, llm_hidden_size: int
) -> WindowedQFormer | StackedMLP | CTCCompressor:
    """Build the connector that `config.kind` names, with random weights."""
    match config.kind:
        case "windowed_qformer":
            return WindowedQFormer(config, encoder_hidden_size, llm_hidden_size)
        case "stacked_mlp":
            return StackedMLP(config, encoder_hidden_size, llm_hidden_size)
        case "ctc_compressor":
            return CTCCompressor(config, encoder_hidden_size, llm_hidden_size)
        case _:
            assert_never(config.kind)


def _check_width(frames: Tensor, expected: int) -> None:
    if frames.shape[-1] != expected:
        raise ValueError(f"encoder frames are {frames.shape[-1]} wide, the connector was built for {expected}")


def _windows(frames: Tensor, frames_mask: Tensor, size: int, tail: str) -> tuple[Tensor, Tensor]:
    """Cut (B, T, D) into (B, W, K, D), zero-padded at the end, and tell which windows are real: (B, W), bool.

    Frames past a clip's end must be zero already: a window then looks the same alone and in a batch.
    """
    lengths = frames_mask.sum(dim=1)
    counts = (lengths + size - 1) // size if tail == "pad" else (lengths // size).clamp(min=1)
    num_windows = int(counts.max())
    missing = num_windows * size - frames.shape[1]
    frames = nn.functional.pad(frames, (0, 0, 0, missing)) if missing > 0 else frames[:, : num_windows * size]
    windows = frames.unflatten(1, (num_windows, size))
    return windows, torch.arange(num_windows, device=lengths.device)[None] < counts[:, None]
