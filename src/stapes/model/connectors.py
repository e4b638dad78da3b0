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
    Frames of two encoders lie side by side on the channels, and each encoder's have a LayerNorm of their own.
    """

    def __init__(
        self, config: ConnectorConfig, encoder_hidden_size: int, llm_hidden_size: int, sound_hidden_size: int = 0
    ) -> None:
        super().__init__()
        self.frames_per_window = config.frames_per_window
        self.tail = config.tail
        self.norm = nn.LayerNorm(encoder_hidden_size)
        self.sound_norm = nn.LayerNorm(sound_hidden_size) if sound_hidden_size else None
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
                encoder_hidden_size=encoder_hidden_size + sound_hidden_size,
            )
        )
        self.projection = nn.Linear(config.hidden_size, llm_hidden_size)

    def forward(self, frames: Tensor, frames_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool each window of encoder frames into Q LLM embeddings.

        Args:
            frames: (B, T, D) encoder output at 50 Hz, that of the sound encoder last on the channels.
            frames_mask: (B, T), True on real frames, which come first.

        Returns:
            (B, A, D_llm) in time order, and its mask (B, A). 30 s with K=17, Q=1 gives A=89, with `tail: drop` 88.

        Raises:
            ValueError: if D is not the encoder's width.

        Unlike SALMONN a tail is kept unless `tail: drop`; its missing frames are zeros that are attended to,
        which is how SALMONN treats padding.
        """
        windows, window_mask = _windows(
            self.normalize(frames) * frames_mask[:, :, None], frames_mask, self.frames_per_window, self.tail
        )
        batch_size, num_windows = windows.shape[:2]
        hidden = self.qformer(
            query_embeds=self.query_tokens.expand(batch_size * num_windows, -1, -1),
            encoder_hidden_states=windows.flatten(0, 1),
        ).last_hidden_state
        tokens = self.projection(hidden).unflatten(0, (batch_size, num_windows)).flatten(1, 2)
        return tokens, window_mask.repeat_interleave(self.query_tokens.shape[1], dim=1)

    def normalize(self, frames: Tensor) -> Tensor:
        """Normalise each encoder's part of (B, T, D) by itself; sound frames that are all zero stay zero.

        All zero are only those past the end of what the sound encoder heard (see `join_frames`), which SALMONN pads
        after its norm: a norm would turn them into its bias.

        Raises:
            ValueError: if D is not the width of all encoders.
        """
        speech_width = self.norm.normalized_shape[0]
        if self.sound_norm is None:
            _check_width(frames, speech_width)
            return self.norm(frames)
        _check_width(frames, speech_width + self.sound_norm.normalized_shape[0])
        speech, sound = frames[..., :speech_width], frames[..., speech_width:]
        is_heard = (sound != 0).any(dim=-1, keepdim=True)
        return torch.cat([self.norm(speech), self.sound_norm(sound) * is_heard], dim=-1)


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
            (B, A, D_llm) with A = ceil(T / K), or with `tail: drop` max(1, floor(T / K)), in time order, and its mask
            (B, A).

        Raises:
            ValueError: if D is not the encoder's width.
        """
        _check_width(frames, self.norm_in.normalized_shape[0] // self.frames_per_window)
        stacks, stack_mask = _windows(frames * frames_mask[:, :, None], frames_mask, self.frames_per_window, self.tail)
        value, gate = self.linear_1(self.norm_in(stacks.flatten(2))).chunk(2, dim=-1)
        hidden = self.norm_mid(nn.functional.silu(gate) * value)
        return self.norm_out(self.linear_2(hidden)), stack_mask


def build_connector(
    config: ConnectorConfig, encoder_hidden_size: int, llm_hidden_size: int, sound_hidden_size: int = 0
) -> WindowedQFormer | StackedMLP | CTCCompressor:
    """Build the connector that `config.kind` names, with random weights.

    Args:
        config: its shape.
        encoder_hidden_size: width of the speech encoder.
        llm_hidden_size: width of the LLM.
        sound_hidden_size: width of the sound encoder, 0 without one.
    """
    match config.kind:
        case "windowed_qformer":
            return WindowedQFormer(config, encoder_hidden_size, llm_hidden_size, sound_hidden_size)
        case "stacked_mlp":
            return StackedMLP(config, encoder_hidden_size + sound_hidden_size, llm_hidden_size)
        case "ctc_compressor":
            return CTCCompressor(config, encoder_hidden_size + sound_hidden_size, llm_hidden_size)
        case _:
            assert_never(config.kind)


def join_frames(speech: Tensor, speech_mask: Tensor, sound: Tensor) -> Tensor:
    """Put the frames of two encoders side by side: (B, T, D) and (B, T', D') → (B, T, D + D').

    The length is the speech encoder's. Sound frames, zero past their clip's end, are padded with zeros or cut to it: of
    10 s BEATs makes 496 and EAT 504 where Whisper makes 500, all at 50 Hz.

    Source: SALMONN (arXiv 2310.13289), sec. 3. Where we differ: SALMONN takes the longer of both; its windows of 17
    frames drop what EAT has more in 30 s.
    """
    missing = speech.shape[1] - sound.shape[1]
    # A negative padding cuts.
    sound = nn.functional.pad(sound.to(speech.dtype), (0, 0, 0, missing)) * speech_mask[:, :, None]
    return torch.cat([speech, sound], dim=-1)


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
