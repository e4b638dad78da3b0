"""The ears: Whisper's own output for a padded clip, and work in proportion to the clip otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from stapes.model import StapesForConditionalGeneration, StapesProcessor

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]
Kind = Literal["windowed_qformer", "stacked_mlp"]

KINDS = pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp"])


@torch.no_grad()
@KINDS
def test_a_padded_clip_is_heard_as_whisper_hears_it(
    kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor(kind, pad_audio_to_s=30.0)
    config = WhisperConfig(**{**model.config.speech_config.to_dict(), "decoder_attention_heads": 2})
    whisper = WhisperModel(config).eval()
    whisper.encoder.load_state_dict(model.speech_encoder.state_dict())
    clips = [speech_like(1.0, 0), speech_like(7.3, 1), speech_like(30.0, 2)]
    features = WhisperFeatureExtractor()(clips, sampling_rate=16_000, return_tensors="pt")["input_features"]
    expected = whisper.encoder(features).last_hidden_state
    inputs = processor.prepare(clips, ["Hi?"] * 3)
    assert torch.equal(inputs["input_features"], features)
    frames, mask = model.encode(inputs["input_features"], inputs["input_features_mask"])
    assert bool(mask.all())
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@KINDS
def test_work_follows_the_clip(kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    """Counted where they are computed: features at 100 Hz, encoder frames at 50 Hz, tokens one for each window."""
    model, processor = tiny_model_and_processor(kind)
    computed: list[int] = []
    model.speech_encoder.layers[0].register_forward_hook(
        lambda _module, _inputs, output: computed.append(output.shape[0] * output.shape[1])
    )
    prompt = len(processor.tokenizer(processor.build_prompt("Hi?"))["input_ids"]) - 1
    window = model.config.connector_config.frames_per_window
    for duration_s in (0.5, 1.0, 2.0, 4.0, 10.0, 30.0, 65.0):
        computed.clear()
        inputs = processor.prepare([speech_like(duration_s, 0)], ["Hi?"])
        model(**inputs, logits_to_keep=1)
        num_frames = round(50 * duration_s)
        assert inputs["input_features"].shape[2] == 2 * num_frames
        assert sum(computed) == num_frames
        assert inputs["input_ids"].shape[1] == prompt + -(-num_frames // window)


@torch.no_grad()
@KINDS
def test_clips_of_any_length_share_a_batch(
    kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor(kind)
    clips = [speech_like(duration_s, seed) for seed, duration_s in enumerate([0.03, 29.99, 30.0, 30.01, 65.0])]
    inputs = processor.prepare(clips, ["Hi?"] * 5)
    together = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    alone = []
    for clip in clips:
        one = processor.prepare([clip], ["Hi?"])
        alone.append(model.get_audio_features(one["input_features"], one["input_features_mask"]))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@torch.no_grad()
@KINDS
def test_audio_beyond_30_s_is_heard_to_its_end(
    kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor(kind)
    waveform = speech_like(65.0, 0)
    changed = waveform.copy()
    changed[-8000:] = 0.0  # the last half second
    features = []
    for clip in (waveform, changed):
        inputs = processor.prepare([clip], ["Hi?"])
        features.append(model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]))
    same = (features[0] - features[1]).abs().amax(dim=1) < 1e-6
    # Blocks of 30 s do not hear each other: the first 60 s stay, the rest differs.
    per_block = 1500 / model.config.connector_config.frames_per_window
    assert bool(same[: int(2 * per_block)].all())
    assert not bool(same[-1])
