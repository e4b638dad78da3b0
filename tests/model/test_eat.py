"""EAT: each part computed once more by hand, the figures of the original code, clips that do not know of each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from stapes.model import EatConfig, EatEncoder, EatFeatureExtractor
from stapes.model.eat import sincos_positions

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def seeded(model: nn.Module) -> None:
    """Fill all weights from a stream that never changes: norms around 1, the rest around 0, all of them felt."""
    random = np.random.RandomState(0)
    for name, weight in sorted(model.named_parameters()):
        values = torch.from_numpy(random.standard_normal(tuple(weight.shape)).astype(np.float32))
        norm = "norm" in name and name.endswith("weight")
        with torch.no_grad():
            weight.copy_(1.0 + 0.1 * values if norm else 0.2 * values)


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal(round(duration_s * 16_000)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def encoder() -> EatEncoder:
    encoder = EatEncoder(EatConfig(**SIZES)).eval()  # type: ignore[arg-type]
    seeded(encoder)
    return encoder


def batch(*features: Tensor, length: int | None = None, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Right-pad features (F, M) with `fill`, which is what a mask must hide."""
    longest = length or max(len(f) for f in features)
    padded = torch.full((len(features), longest, 128), fill)
    mask = torch.zeros(len(features), longest, dtype=torch.int64)
    for row, f in enumerate(features):
        padded[row, : len(f)] = f
        mask[row, : len(f)] = 1
    return padded, mask


def clip(num_features: int, seed: int = 0) -> Tensor:
    return torch.randn(num_features, 128, generator=torch.Generator().manual_seed(seed))


# The code of cwx-worst-one/EAT (`AltBlock`, `BlockEncoder`, `get_2d_sincos_pos_embed_flexible`, joined as in
# `Data2VecMultiModel.forward`, padding masked) with the weights of `seeded`: {(clip, frame): its first 6 values} for
# noise(1.0) and noise(0.3, 1) in one batch of this front end.
ORIGINAL = {
    (0, 0): [1.91106, -1.24095, 2.00931, -1.27822, 0.33499, -0.72081],
    (0, 30): [1.31459, -0.78799, 2.04024, -1.35483, 0.63548, -0.48428],
    (0, 55): [1.46534, -0.93025, 2.15546, -1.43417, 0.72859, -0.42988],
    (1, 0): [1.93277, -1.48399, 1.98385, -0.98962, 0.38711, -1.03286],
    (1, 15): [1.40546, -0.96511, 2.38958, -1.31581, 0.54821, -0.92712],
}


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_original_code_gives_the_same(implementation: str) -> None:
    encoder = EatEncoder(EatConfig(**SIZES, attn_implementation=implementation)).eval()  # type: ignore[arg-type]
    seeded(encoder)
    assert encoder.config._attn_implementation == implementation
    frames, mask = encoder(**EatFeatureExtractor()([noise(1.0), noise(0.3, 1)]))
    assert frames.shape == (2, 56, 32)
    assert mask.sum(dim=1).tolist() == [56, 16]
    for (row, frame), expected in ORIGINAL.items():
        torch.testing.assert_close(frames[row, frame, :6], torch.tensor(expected), atol=1e-4, rtol=0)


def by_hand(weights: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """EAT on one clip (F, 128), in float64 and numpy: patches, positions, CLS, norms, attention, feed-forward."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    tokens = [weights["cls_token"][0, 0]]
    for time in range(len(features) // 16):
        for band in range(8):
            patch = features[time * 16 : time * 16 + 16, band * 16 : band * 16 + 16]
            embedded = (weights["patch_embedding.weight"][:, 0] * patch).sum((1, 2)) + weights["patch_embedding.bias"]
            angles = [(place / 10_000 ** (np.arange(8) / 8)) for place in (band, time)]
            tokens.append(embedded + np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)]))
    hidden = norm(np.stack(tokens), "pre_norm")
    for layer in ("layers.0", "layers.1"):
        query, key, value = np.split(linear(hidden, f"{layer}.attn.qkv"), 3, axis=1)
        heads = []
        for head in (slice(0, 16), slice(16, 32)):
            scores = np.exp(query[:, head] @ key[:, head].T / 4.0)  # √16
            heads.append(scores / scores.sum(1, keepdims=True) @ value[:, head])
        hidden = norm(hidden + linear(np.concatenate(heads, axis=1), f"{layer}.attn.proj"), f"{layer}.norm1")
        inner = linear(hidden, f"{layer}.fc1")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        hidden = norm(hidden + linear(inner, f"{layer}.fc2"), f"{layer}.norm2")
    return hidden[1:]


@torch.no_grad()
def test_each_part_by_hand(encoder: EatEncoder) -> None:
    weights = {name: weight.double().numpy() for name, weight in encoder.state_dict().items()}
    features = clip(64)
    expected = by_hand(weights, features.double().numpy())
    torch.testing.assert_close(encoder(features[None])[0][0].double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_base_and_large_have_the_size_of_their_vits() -> None:
    """12 or 24 layers of 12 D² + 13 D, patches of 256 values and a bias, CLS, one norm."""
    with torch.device("meta"):
        assert EatEncoder(EatConfig()).num_parameters() == 12 * (12 * 768**2 + 13 * 768) + 260 * 768 == 85_254_144
        large = EatConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        assert EatEncoder(large).num_parameters() == 24 * (12 * 1024**2 + 13 * 1024) + 260 * 1024


def test_positions_tell_band_first_then_time() -> None:
    positions = sincos_positions(3, 2, 8)
    assert positions.shape == (6, 8)
    # Token 5 is time 2, band 1; the frequencies are 1 and 1 / 100.
    expected = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    expected += [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    torch.testing.assert_close(positions[5], torch.tensor(expected))
    assert positions[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(("samples", "frames"), [(400, 8), (2_800, 8), (2_960, 16), (16_000, 56), (160_000, 504)])
def test_a_clip_is_padded_to_whole_patches(encoder: EatEncoder, samples: int, frames: int) -> None:
    inputs = EatFeatureExtractor()([np.ones(samples, dtype=np.float32)])
    assert inputs["sound_features"].shape == (1, frames * 2, 128)
    with torch.no_grad():
        found, mask = encoder(**inputs)
    assert found.shape == (1, frames, 32)
    assert torch.equal(mask, torch.ones(1, frames, dtype=torch.bool))


def test_30_s_are_one_block(encoder: EatEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    original = encoder.layers[0].forward

    def spy(hidden: Tensor, *arguments: object) -> Tensor:
        lengths.append(hidden.shape[1])
        return original(hidden, *arguments)

    monkeypatch.setattr(encoder.layers[0], "forward", spy)
    with torch.no_grad():
        encoder(**EatFeatureExtractor()([np.zeros(480_000, dtype=np.float32)]))
    assert lengths == [1505]


def test_the_front_end_is_eats_own() -> None:
    """Silence: (-15.942385 + 4.268) / (2 * 4.569) = -1.27757; padding of a patch: 4.268 / 9.138 = 0.46706."""
    inputs = EatFeatureExtractor()([np.full(1_000, 0.7), noise(1.0) + 0.5], sampling_rate=16_000)
    features, mask = inputs["sound_features"], inputs["sound_features_mask"]
    assert (features.shape, features.dtype) == ((2, 112, 128), torch.float32)
    assert (mask.sum(dim=1).tolist(), mask.dtype) == ([16, 112], torch.int64)
    torch.testing.assert_close(features[0, :4], torch.full((4, 128), -1.27757), atol=1e-5, rtol=0)
    torch.testing.assert_close(features[0, 4:16], torch.full((12, 128), 0.46706), atol=1e-5, rtol=0)
    torch.testing.assert_close(features[1, 98:], torch.full((14, 128), 0.46706), atol=1e-5, rtol=0)
    assert torch.equal(features[0, 16:], torch.zeros(96, 128))
    # torchaudio 2.11.0's fbank of noise(1.0) with EAT's options has these values at frame 48, bins 20 and 64.
    expected = (torch.tensor([-2.38643, 0.43023]) + 4.268) / 9.138
    torch.testing.assert_close(features[1, 48, [20, 64]], expected, atol=1e-4, rtol=0)


def test_the_codes_padding_can_be_had() -> None:
    """1024 frames for 10 s and for anything shorter, all of them attended to; nothing is cut."""
    plain, padded = EatFeatureExtractor(), EatFeatureExtractor(pad_to_frames=1024)
    inputs = padded([noise(1.0), noise(0.3, 1)])
    assert inputs["sound_features_mask"].sum(dim=1).tolist() == [1024, 1024]
    torch.testing.assert_close(inputs["sound_features"][0, :112], plain([noise(1.0)])["sound_features"][0])
    torch.testing.assert_close(inputs["sound_features"][1, 28:], torch.full((996, 128), 0.46706), atol=1e-5, rtol=0)
    assert padded([noise(11.0)])["sound_features"].shape == (1, 1104, 128)


@torch.no_grad()
@pytest.mark.parametrize("fill", [0.0, 7.0])
def test_frames_do_not_depend_on_the_batch(encoder: EatEncoder, fill: float) -> None:
    clips = [clip(n, seed) for seed, n in enumerate([15, 16, 32, 112, 1008, 3008, 3024, 3504])]
    frames, mask = encoder(*batch(*clips, fill=fill))
    assert frames.shape == (8, 1752, 32)
    assert mask.sum(dim=1).tolist() == [0, 8, 16, 56, 504, 1504, 1512, 1752]
    assert torch.equal(frames[~mask], torch.zeros_like(frames[~mask]))
    for row, alone in enumerate(clips):
        expected, _ = encoder(alone[None])
        torch.testing.assert_close(frames[row][mask[row]], expected[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_waveforms_do_not_depend_on_the_batch(encoder: EatEncoder) -> None:
    extractor = EatFeatureExtractor()
    waveforms = [noise(2.0) + 0.1, noise(0.5, 1), noise(1.13, 2) - 0.3, noise(0.1, 3)]
    frames, mask = encoder(**extractor(waveforms))
    for row, waveform in enumerate(waveforms):
        expected, _ = encoder(**extractor([waveform]))
        torch.testing.assert_close(frames[row][mask[row]], expected[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_beyond_30_s_blocks_are_encoded_apart(encoder: EatEncoder) -> None:
    long = clip(4000)[None]
    frames, _ = encoder(long)
    assert torch.equal(frames[:, :1504], encoder(long[:, :3008])[0])
    assert torch.equal(frames[:, 1504:], encoder(long[:, 3008:])[0])


def test_gradients_reach_every_weight(encoder: EatEncoder) -> None:
    for checkpointing in (False, True):
        trained = EatEncoder(encoder.config).train()
        trained.load_state_dict(encoder.state_dict())
        if checkpointing:
            trained.activation_checkpointing_enable()
        frames, mask = trained(*batch(clip(112), clip(48, 1)))
        frames[mask].pow(2).sum().backward()
        assert [name for name, weight in trained.named_parameters() if weight.grad is None] == []


@torch.no_grad()
def test_mixed_precision(encoder: EatEncoder) -> None:
    features, mask = batch(clip(112), clip(64, 1))
    expected, _ = encoder(features, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frames, _ = encoder(features, mask)
    assert (frames.float() - expected).abs().mean() < 0.05
    half = EatEncoder(encoder.config).eval()
    half.load_state_dict(encoder.state_dict())
    frames, _ = half.to(torch.bfloat16)(features, mask)  # type: ignore[arg-type]  # transformers' `to` is loosely typed
    assert frames.dtype == torch.bfloat16
    assert (frames.float() - expected).abs().mean() < 0.05


@torch.no_grad()
def test_a_folder_brings_encoder_and_front_end_back(encoder: EatEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    EatFeatureExtractor(pad_to_frames=512).save_pretrained(tmp_path)
    back = AutoModel.from_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(back) is EatEncoder
    assert type(extractor) is EatFeatureExtractor
    assert (extractor.mean, extractor.std, extractor.pad_to_frames) == (-4.268, 4.569, 512)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == encoder.config.to_diff_dict()
    inputs = extractor([noise(1.0)])
    assert torch.equal(back(**inputs)[0], encoder(**inputs)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_mel_bins": 8}, "num_mel_bins is 8; wanted a multiple of 16"),
        ({"hidden_size": 100}, "hidden_size 100 does not divide by 12 heads"),
        ({"hidden_size": 90, "num_attention_heads": 9}, "hidden_size is 90; sine and cosine .* need a multiple of 4"),
        ({"layer_norm_eps": None}, "Field 'layer_norm_eps' expected float, got NoneType"),
    ],
)
def test_an_eat_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        EatConfig(**wrong)


def test_features_of_another_front_end_are_refused(encoder: EatEncoder) -> None:
    with pytest.raises(
        ValueError, match=r"^sound_features has shape \[1, 100, 80\], the sound encoder wants \(B, F, 128"
    ):
        encoder(torch.zeros(1, 100, 80))
