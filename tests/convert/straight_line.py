"""SALMONN's forward pass written down once more, in plain torch functions over the tensors of its files.

By the published description (arXiv 2310.13289) and the layout of its checkpoints: Whisper, BEATs, norms, windows,
Q-Former, projection, LLaMA with LoRA. No class of ours or of transformers takes part; one clip at a time, no masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, gelu, layer_norm, linear, pad, silu

Weights = Mapping[str, Tensor]


def normed(x: Tensor, weights: Weights, name: str, eps: float = 1e-5) -> Tensor:
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def affine(x: Tensor, weights: Weights, name: str) -> Tensor:
    return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """(t, D), (s, D), (s, D) → (t, D)."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(-3, -2) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2)


def whisper(mel: Tensor, weights: Weights, num_heads: int) -> Tensor:
    """(M, 3000) → (1500, D)."""
    at = "model.encoder."
    x = gelu(conv1d(mel[None], weights[f"{at}conv1.weight"], weights[f"{at}conv1.bias"], padding=1))
    x = gelu(conv1d(x, weights[f"{at}conv2.weight"], weights[f"{at}conv2.bias"], stride=2, padding=1))
    x = x[0].T + weights[f"{at}embed_positions.weight"]
    number = 0
    while f"{at}layers.{number}.fc1.weight" in weights:
        layer = f"{at}layers.{number}"
        y = normed(x, weights, f"{layer}.self_attn_layer_norm")
        q, k, v = (affine(y, weights, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        x = x + affine(attend(q, k, v, num_heads), weights, f"{layer}.self_attn.out_proj")
        y = gelu(affine(normed(x, weights, f"{layer}.final_layer_norm"), weights, f"{layer}.fc1"))
        x = x + affine(y, weights, f"{layer}.fc2")
        number += 1
    return normed(x, weights, f"{at}layer_norm")


def kaldi_fbank(waveform: np.ndarray) -> Tensor:
    """(N,) → (F, 128): 25 ms every 10 ms, povey window, in float64."""
    n = np.arange(400)
    taper = (0.5 - 0.5 * np.cos(2 * np.pi * n / 399)) ** 0.85
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 130)
    mel = 1127 * np.log(1 + np.arange(256) * 16_000 / 512 / 700)
    rise = (mel - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - mel) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(rise, fall))
    rows = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400].astype(np.float64) * 2**15
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * taper, 512)) ** 2
        rows.append(np.log(np.maximum(triangles @ power[:256], 2.0**-23)))
    return torch.from_numpy(np.stack(rows)).float()


def beats(waveform: np.ndarray, cfg: Mapping[str, Any], weights: Weights) -> Tensor:
    """(N,) → (8 · floor(F / 16), D)."""
    features = (kaldi_fbank(waveform) - 15.41663) / (2 * 6.55582)
    x = conv2d(features[None, None], weights["patch_embedding.weight"], stride=16)[0].flatten(1).T
    x = affine(normed(x, weights, "layer_norm"), weights, "post_extract_proj")
    v, g = weights["encoder.pos_conv.0.weight_v"], weights["encoder.pos_conv.0.weight_g"]
    kernel = g * v / v.pow(2).sum(dim=(0, 1), keepdim=True).sqrt()
    width = kernel.shape[2]
    y = conv1d(x.T[None], kernel, weights["encoder.pos_conv.0.bias"], padding=width // 2, groups=cfg["conv_pos_groups"])
    x = normed(x + gelu(y[0, :, : len(x)]).T, weights, "encoder.layer_norm")

    num_heads, alpha = cfg["encoder_attention_heads"], (2 * cfg["encoder_layers"]) ** 0.25
    table = weights["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    last = len(x) - 1
    of_distance = torch.tensor([bucket(d, cfg["num_buckets"], cfg["max_distance"]) for d in range(-last, last + 1)])
    place = torch.arange(len(x))
    bias = table[of_distance[place[None] - place[:, None] + last]].permute(2, 0, 1)
    for number in range(cfg["encoder_layers"]):
        layer = f"encoder.layers.{number}"
        q, k, v = (affine(x, weights, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        gates = affine(q.unflatten(-1, (num_heads, -1)), weights, f"{layer}.self_attn.grep_linear")
        gates = gates.unflatten(-1, (2, 4)).sum(-1).sigmoid().permute(1, 0, 2)
        scale = weights[f"{layer}.self_attn.grep_a"].view(-1, 1, 1)
        gated = (gates[..., :1] * (gates[..., 1:] * scale - 1) + 2) * bias
        y = affine(attend(q, k, v, num_heads, gated), weights, f"{layer}.self_attn.out_proj")
        x = normed(x * alpha + y, weights, f"{layer}.self_attn_layer_norm")
        y = affine(gelu(affine(x, weights, f"{layer}.fc1")), weights, f"{layer}.fc2")
        x = normed(x * alpha + y, weights, f"{layer}.final_layer_norm")
    return x


def bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    half = num_buckets // 2
    exact, size = half // 2, abs(distance)
    if size >= exact:
        grown = math.log(size / exact) / math.log(max_distance / exact) * (half - exact)
        size = min(half - 1, exact + int(grown))
    return size + half * (distance > 0)


def audio_tokens(speech: Tensor, sound: Tensor | None, weights: Weights, num_heads: int = 12) -> Tensor:
    """Whisper's frames (1500, D) and BEATs' (T_b, D_b) → (88, H)."""
    x = normed(speech, weights, "ln_speech")
    if sound is not None:
        sound = normed(sound, weights, "ln_audio")
        length = max(len(x), len(sound))
        x = torch.cat([pad(part, (0, 0, 0, length - len(part))) for part in (x, sound)], dim=1)
    windows = x.unfold(0, 17, 17).transpose(1, 2)  # the last frames, too few for a window, are dropped
    bert = "speech_Qformer.bert"
    queries = weights["speech_query_tokens"].expand(len(windows), -1, -1)
    h = normed(queries, weights, f"{bert}.embeddings.LayerNorm", 1e-12)
    number = 0
    while f"{bert}.encoder.layer.{number}.attention.self.query.weight" in weights:
        layer = f"{bert}.encoder.layer.{number}"
        for name, seen in (("attention", None), ("crossattention", windows)):
            seen = h if seen is None else seen
            q = affine(h, weights, f"{layer}.{name}.self.query")
            k, v = (affine(seen, weights, f"{layer}.{name}.self.{kind}") for kind in ("key", "value"))
            y = affine(attend(q, k, v, num_heads), weights, f"{layer}.{name}.output.dense")
            h = normed(h + y, weights, f"{layer}.{name}.output.LayerNorm", 1e-12)
        y = gelu(affine(h, weights, f"{layer}.intermediate_query.dense"))
        y = affine(y, weights, f"{layer}.output_query.dense")
        h = normed(h + y, weights, f"{layer}.output_query.LayerNorm", 1e-12)
        number += 1
    return affine(h, weights, "speech_llama_proj").flatten(0, 1)


def llama(embeddings: Tensor, config: Mapping[str, Any], weights: Weights, lora: Weights, alpha: float) -> Tensor:
    """(L, H) → logits (L, V); `lora` by the names of SALMONN's checkpoints."""
    num_heads, num_kv, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]

    def adapted(x: Tensor, name: str) -> Tensor:
        y = affine(x, weights, name)
        down = lora.get(f"llama_model.base_model.model.{name}.lora_A.default.weight")
        if down is None:
            return y
        up = lora[f"llama_model.base_model.model.{name}.lora_B.default.weight"]
        return y + x @ down.T @ up.T * alpha / len(down)

    x, length = embeddings, len(embeddings)
    causal = torch.full((length, length), -math.inf).triu(1)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        y = rms(x, f"{layer}.input_layernorm")
        q, k, v = (adapted(y, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        q, k = rotated(q, num_heads), rotated(k, num_kv)
        k, v = (
            part.unflatten(-1, (num_kv, -1)).repeat_interleave(num_heads // num_kv, dim=1).flatten(1) for part in (k, v)
        )
        x = x + adapted(attend(q, k, v, num_heads, causal), f"{layer}.self_attn.o_proj")
        y = rms(x, f"{layer}.post_attention_layernorm")
        y = silu(adapted(y, f"{layer}.mlp.gate_proj")) * adapted(y, f"{layer}.mlp.up_proj")
        x = x + adapted(y, f"{layer}.mlp.down_proj")
    return rms(x, "model.norm") @ weights["model.embed_tokens.weight"].T


def rotated(x: Tensor, num_heads: int, theta: float = 10_000.0) -> Tensor:
    """Turn (L, heads · d) by the positions 0 … L - 1, each head's first half with its second."""
    first, second = x.unflatten(-1, (num_heads, 2, -1)).unbind(dim=2)
    half = first.shape[-1]
    angle = torch.arange(len(x))[:, None, None] * theta ** (-torch.arange(half) / half)
    return torch.stack(
        [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=2
    ).flatten(1)


def prompt_embeddings(before: Sequence[int], audio: Tensor, after: Sequence[int], table: Tensor) -> Tensor:
    """BOS and the text before, the audio, the text after: (L, H)."""
    return torch.cat([table[torch.tensor(before)], audio, table[torch.tensor(after)]])
