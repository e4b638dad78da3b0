"""The connectors against a second, straight-line computation, and their windows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stapes.model.configuration import ConnectorConfig, num_audio_tokens
from stapes.model.connectors import StackedMLP, WindowedQFormer, build_connector
from stapes.model.ctc_compressor import CTCCompressor

D, D_LLM = 24, 40


def random_connector(config: ConnectorConfig, seed: int = 0) -> WindowedQFormer | StackedMLP | CTCCompressor:
    torch.manual_seed(seed)
    connector = build_connector(config, D, D_LLM).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return connector


def qformer(tail: str = "pad", queries: int = 2, frames_per_window: int = 17, layers: int = 2) -> ConnectorConfig:
    return ConnectorConfig(
        kind="windowed_qformer",
        frames_per_window=frames_per_window,
        queries_per_window=queries,
        tail=tail,  # type: ignore[arg-type]  # the parameters of a test are plain texts
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
    )


def mlp(tail: str = "pad", stack: int = 8) -> ConnectorConfig:
    return ConnectorConfig(kind="stacked_mlp", frames_per_window=stack, tail=tail, hidden_size=20)  # type: ignore[arg-type]


def frames_of(num_frames: int, seed: int = 1) -> Tensor:
    return torch.randn(1, num_frames, D, generator=torch.Generator().manual_seed(seed))


def all_real(frames: Tensor) -> Tensor:
    return torch.ones(frames.shape[:2], dtype=torch.bool)


def windows_by_unfold(frames: Tensor, size: int, tail: str) -> Tensor:
    """(T, D) → (W, K, D) as SALMONN does it, with `unfold`; for `pad` zeros are appended first."""
    num_frames, width = frames.shape
    missing = -num_frames % size
    if tail == "pad" or num_frames < size:
        frames = torch.cat([frames, torch.zeros(missing, width)])
    columns = functional.unfold(frames.T[None, :, None, :], kernel_size=(1, size), stride=(1, size))  # (1, D·K, W)
    return columns[0].reshape(width, size, -1).permute(2, 1, 0)


def attend(weights: dict[str, Tensor], name: str, queries: Tensor, context: Tensor, heads: int = 4) -> Tensor:
    """BERT's attention block of one window: (Q, H) attends to (K, ·); residual and LayerNorm included."""

    def linear(part: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.{part}.weight"].T + weights[f"{name}.{part}.bias"]

    q, k, v = (linear(f"attention.{part}", x) for part, x in [("query", queries), ("key", context), ("value", context)])
    size = q.shape[-1] // heads
    mixed = []
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        scores = torch.softmax(q[:, columns] @ k[:, columns].T / math.sqrt(size), dim=-1)
        mixed.append(scores @ v[:, columns])
    return layer_norm(weights, f"{name}.output.LayerNorm", linear("output.dense", torch.cat(mixed, dim=-1)) + queries)


def layer_norm(weights: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(dim=-1, keepdim=True) + eps)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def straight_line_qformer(connector: WindowedQFormer, frames: Tensor, size: int, tail: str, layers: int = 2) -> Tensor:
    weights = {name: tensor.double() for name, tensor in connector.state_dict().items()}
    frames = layer_norm(weights, "norm", frames.double(), eps=1e-5)
    tokens = []
    for window in windows_by_unfold(frames, size, tail).double():
        hidden = layer_norm(weights, "qformer.layernorm", weights["query_tokens"][0])
        for index in range(layers):
            layer = f"qformer.encoder.layer.{index}"
            hidden = attend(weights, f"{layer}.attention", hidden, hidden)
            hidden = attend(weights, f"{layer}.crossattention", hidden, window)
            up = hidden @ weights[f"{layer}.intermediate_query.dense.weight"].T
            up = up + weights[f"{layer}.intermediate_query.dense.bias"]
            up = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
            down = up @ weights[f"{layer}.output_query.dense.weight"].T + weights[f"{layer}.output_query.dense.bias"]
            hidden = layer_norm(weights, f"{layer}.output_query.LayerNorm", down + hidden)
        tokens.append(hidden @ weights["projection.weight"].T + weights["projection.bias"])
    return torch.cat(tokens)


@torch.no_grad()
@pytest.mark.parametrize("tail", ["pad", "drop"])
@pytest.mark.parametrize("num_frames", [3, 17, 40, 51])
def test_windowed_qformer_is_what_the_paper_says(num_frames: int, tail: str) -> None:
    connector = random_connector(qformer(tail))
    assert isinstance(connector, WindowedQFormer)
    frames = frames_of(num_frames)
    tokens, mask = connector(frames, all_real(frames))
    expected = straight_line_qformer(connector, frames[0], 17, tail)
    assert tokens.shape == (1, num_audio_tokens(2 * num_frames, 17, 2, tail), D_LLM)  # type: ignore[arg-type]
    assert bool(mask.all())
    torch.testing.assert_close(tokens[0].double(), expected, atol=2e-5, rtol=1e-5)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6) * weight


@torch.no_grad()
@pytest.mark.parametrize("tail", ["pad", "drop"])
@pytest.mark.parametrize("num_frames", [3, 8, 20, 24])
def test_stacked_mlp_is_ultravoxs(num_frames: int, tail: str) -> None:
    connector = random_connector(mlp(tail))
    frames = frames_of(num_frames)
    tokens, mask = connector(frames, all_real(frames))
    weights = {name: tensor.double() for name, tensor in connector.state_dict().items()}
    expected = []
    for window in windows_by_unfold(frames[0], 8, tail).double():
        stacked = torch.cat(list(window))  # frame after frame, side by side
        hidden = rms_norm(stacked, weights["norm_in.weight"]) @ weights["linear_1.weight"].T
        value, gate = hidden[:10], hidden[10:]
        hidden = rms_norm(gate / (1 + torch.exp(-gate)) * value, weights["norm_mid.weight"])
        expected.append(rms_norm(hidden @ weights["linear_2.weight"].T, weights["norm_out.weight"]))
    assert tokens.shape == (1, num_audio_tokens(2 * num_frames, 8, 1, tail), D_LLM)  # type: ignore[arg-type]
    assert bool(mask.all())
    torch.testing.assert_close(tokens[0].double(), torch.stack(expected), atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tail", ["pad", "drop"])
@pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp"])
@pytest.mark.parametrize("size", [1, 5, 8, 17])
def test_tokens_do_not_depend_on_the_batch(kind: str, tail: str, size: int) -> None:
    config = qformer(tail, frames_per_window=size) if kind == "windowed_qformer" else mlp(tail, size)
    connector = random_connector(config)
    lengths = [1, 5, 16, 17, 18, 51, 365]
    clips = [frames_of(length, seed) for seed, length in enumerate(lengths)]
    frames = torch.full((len(clips), 365, D), 9.0)  # padding that must not be heard
    mask = torch.zeros(len(clips), 365, dtype=torch.bool)
    for row, clip in enumerate(clips):
        frames[row, : clip.shape[1]] = clip[0]
        mask[row, : clip.shape[1]] = True
    tokens, tokens_mask = connector(frames, mask)
    counts = [num_audio_tokens(2 * n, size, config.queries_per_window, config.tail) for n in lengths]
    assert tokens_mask.sum(dim=1).tolist() == counts
    assert tokens.shape[1] == max(counts)
    for row, clip in enumerate(clips):
        alone, alone_mask = connector(clip, all_real(clip))
        assert bool(alone_mask.all())
        assert bool(tokens_mask[row, : counts[row]].all())
        torch.testing.assert_close(tokens[row, : counts[row]], alone[0], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_weight() -> None:
    for config in (qformer(), mlp()):
        connector = random_connector(config)
        frames = frames_of(40).requires_grad_()
        connector(frames, all_real(frames))[0].pow(2).sum().backward()
        assert frames.grad is not None
        assert [name for name, parameter in connector.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("config", [qformer(), mlp()])
def test_frames_of_another_encoder_are_refused(config: ConnectorConfig) -> None:
    frames = torch.zeros(1, 20, D + 1)
    with pytest.raises(ValueError, match=r"^encoder frames are 25 wide, the connector was built for 24$"):
        random_connector(config)(frames, all_real(frames))
