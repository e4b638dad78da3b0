"""BEATs: the figures of the original code, and clips that do not know of each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from stapes.model import BeatsConfig, BeatsEncoder, BeatsFeatureExtractor
from stapes.model.beats import relative_buckets
from stapes.model.patches import num_sound_frames

SIZES = {
    "patch_embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_kernel": 16,
    "conv_groups": 4,
    "num_buckets": 32,
    "max_distance": 60,
}


def seeded(model: nn.Module) -> None:
    """Fill all weights from a stream that never changes: norms around 1, the rest around 0, all of them felt."""
    random = np.random.RandomState(0)
    for name, weight in sorted(model.named_parameters()):
        values = torch.from_numpy(random.standard_normal(tuple(weight.shape)).astype(np.float32))
        centre, spread = (1.0, 0.1) if name.endswith(("norm.weight", "weight_g", "grep_a")) else (0.0, 0.2)
        with torch.no_grad():
            weight.copy_(centre + spread * values)


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal(round(duration_s * 16_000)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def encoder() -> BeatsEncoder:
    encoder = BeatsEncoder(BeatsConfig(**SIZES, num_classes=5)).eval()  # type: ignore[arg-type]
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


# openbeats 0.1.1 (`BeatsEncoder`, the code of microsoft/unilm with exact padding masks, its fbank by torchaudio 2.11.0)
# with the weights of `seeded`: {(clip, frame): its first 6 values} for noise(2.0), noise(0.5, 1) and noise(1.13, 2) in
# one zero-padded batch.
ORIGINAL = {
    (0, 0): [-1.07976, -2.03304, 0.46396, 0.53764, 0.25887, -1.48855],
    (0, 50): [-1.07745, 0.49173, 0.06533, 1.24545, -1.51384, 1.04453],
    (0, 95): [-0.79389, 0.17372, 0.08174, 1.62662, -1.14525, 1.09052],
    (1, 0): [-1.22794, -1.96167, 0.50064, 0.43391, 0.19125, -1.60583],
    (1, 23): [-1.16255, 0.09103, 0.66767, 1.38952, -1.41127, 0.73425],
    (2, 0): [-1.04256, -2.00815, 0.47669, 0.40451, 0.20391, -1.52074],
}


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_original_code_gives_the_same(implementation: str) -> None:
    config = BeatsConfig(**SIZES, num_classes=5, attn_implementation=implementation)  # type: ignore[arg-type]
    encoder = BeatsEncoder(config).eval()
    seeded(encoder)
    assert encoder.config._attn_implementation == implementation
    frames, mask = encoder(**BeatsFeatureExtractor()([noise(2.0), noise(0.5, 1), noise(1.13, 2)]))
    assert frames.shape == (3, 96, 32)
    assert mask.sum(dim=1).tolist() == [96, 24, 48]
    for (row, frame), expected in ORIGINAL.items():
        torch.testing.assert_close(frames[row, frame, :6], torch.tensor(expected), atol=1e-4, rtol=0)


def test_base_has_the_published_size() -> None:
    with torch.device("meta"):
        assert BeatsEncoder(BeatsConfig(num_classes=527)).num_parameters() == 90_717_055
        assert BeatsEncoder(BeatsConfig()).num_parameters() == 90_717_055 - 527 * 769


@pytest.mark.parametrize(
    ("samples", "frames"), [(2_799, 0), (2_800, 8), (16_000, 48), (160_000, 496), (480_000, 1496), (640_000, 1992)]
)
def test_eight_frames_for_each_160_ms(encoder: BeatsEncoder, samples: int, frames: int) -> None:
    inputs = BeatsFeatureExtractor()([np.zeros(samples, dtype=np.float32)])
    assert num_sound_frames(inputs["sound_features"].shape[1]) == frames
    with torch.no_grad():
        found, mask = encoder(**inputs)
    assert found.shape == (1, frames, 32)
    assert torch.equal(mask, torch.ones(1, frames, dtype=torch.bool))


def test_the_front_end_is_beats_own() -> None:
    """Silence has a log-mel of -15.942385: (-15.942385 - 15.41663) / (2 * 6.55582) = -2.39169."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    inputs = BeatsFeatureExtractor()([np.zeros(1_000), tone], sampling_rate=16_000)
    features, mask = inputs["sound_features"], inputs["sound_features_mask"]
    assert (features.shape, features.dtype) == ((2, 98, 128), torch.float32)
    assert (mask.sum(dim=1).tolist(), mask.dtype) == ([4, 98], torch.int64)
    torch.testing.assert_close(features[0, :4], torch.full((4, 128), -2.39169), atol=1e-5, rtol=0)
    assert torch.equal(features[0, 4:], torch.zeros(94, 128))
    # 1 kHz are 999.99 mel, (999.99 - 31.75) / 21.77 - 1 = 43.48: almost in the middle between the peaks of two bins.
    assert features[1].mean(dim=0).argsort(descending=True)[:2].tolist() == [43, 44]


@torch.no_grad()
@pytest.mark.parametrize("fill", [0.0, 7.0])
def test_frames_do_not_depend_on_the_batch(encoder: BeatsEncoder, fill: float) -> None:
    clips = [clip(n, seed) for seed, n in enumerate([15, 16, 31, 98, 998, 3008, 3023, 3500])]
    frames, mask = encoder(*batch(*clips, fill=fill))
    assert frames.shape == (8, 1744, 32)
    assert mask.sum(dim=1).tolist() == [0, 8, 8, 48, 496, 1504, 1504, 1744]
    assert torch.equal(frames[~mask], torch.zeros_like(frames[~mask]))
    for row, alone in enumerate(clips):
        expected, _ = encoder(alone[None])
        torch.testing.assert_close(frames[row][mask[row]], expected[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_waveforms_do_not_depend_on_the_batch(encoder: BeatsEncoder) -> None:
    extractor = BeatsFeatureExtractor()
    waveforms = [noise(2.0), noise(0.5, 1), noise(1.13, 2), noise(0.1, 3)]
    frames, mask = encoder(**extractor(waveforms))
    for row, waveform in enumerate(waveforms):
        expected, _ = encoder(**extractor([waveform]))
        torch.testing.assert_close(frames[row][mask[row]], expected[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_beyond_30_s_blocks_are_encoded_apart(encoder: BeatsEncoder) -> None:
    long = clip(4000)[None]
    frames, _ = encoder(long)
    assert torch.equal(frames[:, :1504], encoder(long[:, :3008])[0])
    assert torch.equal(frames[:, 1504:], encoder(long[:, 3008:])[0])


@torch.no_grad()
def test_padding_beyond_the_longest_clip_changes_nothing(encoder: BeatsEncoder) -> None:
    frames, mask = encoder(*batch(clip(100), clip(60, 1), length=3100))
    assert (frames.shape, mask.sum(dim=1).tolist()) == ((2, 1544, 32), [48, 24])
    torch.testing.assert_close(frames[:1, :48], encoder(clip(100)[None])[0], atol=1e-5, rtol=0)


def test_near_keys_have_buckets_of_their_own() -> None:
    """Counted by hand for 16 buckets to 40: 8 for each direction, 0 to 3 exact, then 4 · ln(d/4) / ln(10) more."""
    distances = torch.tensor([0, 1, 3, 4, 7, 8, 12, 13, 22, 23, 40, 1000, -1, -3, -4, -8, -1000])
    assert relative_buckets(distances, 16, 40).tolist() == [0, 9, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15, 1, 3, 4, 5, 7]


def test_the_classifier_averages_over_a_clips_own_frames(encoder: BeatsEncoder) -> None:
    frames, mask = torch.ones(2, 4, 32), torch.tensor([[True] * 4, [True, False, False, False]])
    frames[1, 1:] = 9.0
    assert encoder.predictor is not None
    expected = encoder.predictor(torch.ones(32)).sigmoid()
    torch.testing.assert_close(encoder.classify(frames, mask), expected.expand(2, 5))
    with pytest.raises(ValueError, match=r"^this BEATs has no classifier; convert a fine-tuned checkpoint"):
        BeatsEncoder(BeatsConfig(**SIZES)).classify(frames, mask)  # type: ignore[arg-type]


def test_gradients_reach_every_weight(encoder: BeatsEncoder) -> None:
    for checkpointing in (False, True):
        trained = BeatsEncoder(encoder.config).train()
        trained.load_state_dict(encoder.state_dict())
        if checkpointing:
            trained.activation_checkpointing_enable()
        frames, mask = trained(*batch(clip(100), clip(48, 1)))
        frames[mask].pow(2).sum().backward()
        without = [name for name, weight in trained.named_parameters() if weight.grad is None]
        assert without == ["predictor.weight", "predictor.bias"]
        gates = dict(trained.named_parameters())["layers.0.self_attn.grep_a"].grad
        assert gates is not None
        assert gates.abs().min() > 0


@torch.no_grad()
def test_mixed_precision() -> None:
    # Two groups of 16 channels: with fewer, oneDNN's bfloat16 convolution gives other values where AMX is (torch 2.13).
    encoder = BeatsEncoder(BeatsConfig(**SIZES | {"conv_groups": 2})).eval()  # type: ignore[arg-type]
    seeded(encoder)
    features, mask = batch(clip(100), clip(60, 1))
    expected, _ = encoder(features, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frames, _ = encoder(features, mask)
    assert (frames.float() - expected).abs().mean() < 0.05
    half = BeatsEncoder(encoder.config).eval()
    half.load_state_dict(encoder.state_dict())
    frames, _ = half.to(torch.bfloat16)(features, mask)  # type: ignore[arg-type]  # transformers' `to` is loosely typed
    assert frames.dtype == torch.bfloat16
    assert (frames.float() - expected).abs().mean() < 0.05


def test_fresh_weights_keep_the_scale_of_the_positions() -> None:
    """The weight of the convolution is normalised: as drawn, g is the norm of v, and dividing changes nothing."""
    torch.manual_seed(0)
    encoder = BeatsEncoder(BeatsConfig(**SIZES))  # type: ignore[arg-type]
    conv = encoder.pos_conv
    torch.testing.assert_close(conv.weight_g, conv.norm())
    assert conv.weight_v.std().item() == pytest.approx(math.sqrt(4 / (16 * 32)), rel=0.05)
    assert torch.equal(encoder.state_dict()["layers.0.self_attn.grep_a"], torch.ones(1, 2, 1, 1))


@torch.no_grad()
def test_a_folder_brings_encoder_and_front_end_back(
    encoder: BeatsEncoder, tmp_path: Path, speech_like: Callable[[float, int], np.ndarray]
) -> None:
    encoder.save_pretrained(tmp_path)
    BeatsFeatureExtractor(mean=3.0).save_pretrained(tmp_path)
    back = AutoModel.from_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(back) is BeatsEncoder
    assert type(extractor) is BeatsFeatureExtractor
    assert (extractor.mean, extractor.std, extractor.num_mel_bins) == (3.0, 6.55582, 128)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == encoder.config.to_diff_dict()
    inputs = extractor([speech_like(1.0, 0)])
    assert torch.equal(back(**inputs)[0], encoder(**inputs)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_mel_bins": 100}, "num_mel_bins is 100; wanted a multiple of 16"),
        ({"hidden_size": 100}, "hidden_size 100 does not divide by 12 heads"),
        ({"conv_groups": 7}, "hidden_size 768 does not divide by 7 conv_groups"),
        ({"num_classes": 2, "class_names": ["a"]}, "1 class_names for 2 classes"),
        ({"max_distance": "far"}, "Field 'max_distance' expected int, got str"),
    ],
)
def test_a_beats_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        BeatsConfig(**wrong)


def test_features_of_another_front_end_are_refused(encoder: BeatsEncoder) -> None:
    with pytest.raises(
        ValueError, match=r"^sound_features has shape \[1, 100, 80\], the sound encoder wants \(B, F, 128"
    ):
        encoder(torch.zeros(1, 100, 80))
