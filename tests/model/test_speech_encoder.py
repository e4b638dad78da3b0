"""Whisper's encoder at a clip's true length: the same as Whisper at 30 s, and nobody's neighbour elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from stapes.model.speech_encoder import SpeechEncoder

CONFIG = WhisperConfig(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=80)


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    torch.manual_seed(0)
    encoder = SpeechEncoder(CONFIG).eval()
    for parameter in encoder.parameters():
        # Biases start at zero, which would hide what leaks out of padding.
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def clip(num_features: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 80, num_features, generator=torch.Generator().manual_seed(seed))


def batch(*clips: Tensor, length: int | None = None, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Right-pad clips with `fill`, which is what a mask must hide."""
    longest = length or max(c.shape[2] for c in clips)
    features = torch.full((len(clips), 80, longest), fill)
    mask = torch.zeros(len(clips), longest, dtype=torch.int64)
    for row, c in enumerate(clips):
        features[row, :, : c.shape[2]] = c[0]
        mask[row, : c.shape[2]] = 1
    return features, mask


@torch.no_grad()
def test_30_s_are_whispers_own(encoder: SpeechEncoder) -> None:
    whisper = WhisperEncoder(CONFIG).eval()
    whisper.load_state_dict(encoder.state_dict())
    features = torch.cat([clip(3000, 0), clip(3000, 1)])
    expected = whisper(features).last_hidden_state
    frames, mask = encoder(features, torch.ones(2, 3000, dtype=torch.int64))
    assert torch.equal(frames, expected)
    assert torch.equal(mask, torch.ones(2, 1500, dtype=torch.bool))
    assert torch.equal(encoder(features)[0], expected)


@torch.no_grad()
def test_a_short_clip_is_whisper_on_the_first_positions(encoder: SpeechEncoder) -> None:
    """Whisper with a position table of 50 rows is Whisper for clips of 1 s."""
    short = WhisperConfig(**{**CONFIG.to_dict(), "max_source_positions": 50})
    whisper = WhisperEncoder(short).eval()
    state = encoder.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][:50]
    whisper.load_state_dict(state)
    features = clip(100)
    torch.testing.assert_close(encoder(features)[0], whisper(features).last_hidden_state, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("fill", [0.0, 7.0])
def test_frames_do_not_depend_on_the_batch(encoder: SpeechEncoder, fill: float) -> None:
    clips = [clip(n, seed) for seed, n in enumerate([2, 9, 10, 101, 730, 2999, 3000, 3001, 3500, 6501])]
    frames, mask = encoder(*batch(*clips, fill=fill))
    assert frames.shape == (10, 3251, 32)
    assert mask.sum(dim=1).tolist() == [1, 5, 5, 51, 365, 1500, 1500, 1501, 1750, 3251]
    assert torch.equal(frames[~mask], torch.zeros_like(frames[~mask]))
    for row, alone in enumerate(clips):
        expected, _ = encoder(alone)
        torch.testing.assert_close(frames[row][mask[row]], expected[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_beyond_the_longest_clip_changes_nothing(encoder: SpeechEncoder) -> None:
    """Batches that several processes pad to one width may end in padding alone, even whole blocks of it."""
    frames, mask = encoder(*batch(clip(100), clip(60, 1), length=3100))
    assert frames.shape == (2, 1550, 32)
    assert mask.sum(dim=1).tolist() == [50, 30]
    torch.testing.assert_close(frames[:1, :50], encoder(clip(100))[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_beyond_30_s_blocks_are_encoded_apart(encoder: SpeechEncoder) -> None:
    long = clip(6500)
    frames, _ = encoder(long)
    assert frames.shape == (1, 3250, 32)
    assert torch.equal(frames[:, :1500], encoder(long[:, :, :3000])[0])
    assert torch.equal(frames[:, 1500:3000], encoder(long[:, :, 3000:6000])[0])
    assert torch.equal(frames[:, 3000:], encoder(long[:, :, 6000:])[0])


@torch.no_grad()
def test_a_long_neighbour_costs_a_short_clip_nothing(encoder: SpeechEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[tuple[int, ...]] = []
    original = encoder.layers[0].forward

    def spy(hidden: Tensor, *arguments: object) -> Tensor:
        encoded.append(tuple(hidden.shape[:2]))
        return original(hidden, *arguments)

    monkeypatch.setattr(encoder.layers[0], "forward", spy)
    encoder(*batch(clip(100), clip(3100, 1), clip(40, 2)))
    assert encoded == [(3, 1500), (1, 50)]


@torch.no_grad()
def test_a_tapped_layer_stands_beside_the_last(encoder: SpeechEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    features, mask = batch(clip(50), clip(120, 1))
    frames, _ = encoder(features, mask)
    between: list[Tensor] = []
    handle = encoder.layers[0].register_forward_hook(lambda module, inputs, output: between.append(output))
    monkeypatch.setattr(encoder, "tap_layer", 1)
    tapped, frames_mask = encoder(features, mask)
    handle.remove()
    assert tapped.shape == (2, 60, 64)
    assert torch.equal(tapped[..., :32], frames)
    assert torch.equal(tapped[..., 32:], between[0] * frames_mask[:, :, None])


def test_gradients_reach_every_weight_but_the_positions(encoder: SpeechEncoder) -> None:
    trained = SpeechEncoder(CONFIG)
    trained.load_state_dict(encoder.state_dict())
    frames, mask = trained(*batch(clip(100), clip(3100, 1)))
    frames[mask].pow(2).sum().backward()
    without = [name for name, parameter in trained.named_parameters() if parameter.grad is None]
    assert without == ["embed_positions.weight"]


@torch.no_grad()
def test_mixed_precision(encoder: SpeechEncoder) -> None:
    features, mask = batch(clip(100), clip(60, 1))
    expected, _ = encoder(features, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frames, _ = encoder(features, mask)
    assert (frames.float() - expected).abs().max() < 0.1
    half = SpeechEncoder(CONFIG).eval()
    half.load_state_dict(encoder.state_dict())
    frames, _ = half.to(torch.bfloat16)(features, mask)  # type: ignore[arg-type]  # transformers' `to` is loosely typed
    assert frames.dtype == torch.bfloat16
    assert (frames.float() - expected).abs().max() < 0.1


def test_features_of_another_model_are_refused(encoder: SpeechEncoder) -> None:
    with pytest.raises(ValueError, match=r"^input_features has 128 mel bins, the speech encoder wants 80; use"):
        encoder(torch.zeros(1, 128, 100))
