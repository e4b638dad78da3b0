"""A sound encoder beside the speech encoder: both are heard, and all that holds for one encoder holds for two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stapes.assembly import load_model, save_model
from stapes.data.collator import Example, collate, pad_features
from stapes.inference import AudioLM
from stapes.model import StapesForConditionalGeneration, StapesProcessor
from stapes.model.connectors import WindowedQFormer, join_frames

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]

DURATIONS_S = [0.1, 0.5, 1.0, 1.7, 3.3, 7.3, 30.0, 33.0]
INSTRUCTIONS = [f"Say {'it ' * seed}again." for seed in range(8)]


@pytest.fixture
def clips(speech_like: Waveforms) -> list[np.ndarray]:
    return [speech_like(duration_s, seed) for seed, duration_s in enumerate(DURATIONS_S)]


PAIRS = [
    ("windowed_qformer", "beats"),
    ("windowed_qformer", "eat"),
    ("stacked_mlp", "beats"),
    ("ctc_compressor", "eat"),
    ("windowed_qformer", "ast"),
    ("stacked_mlp", "clap"),
]


@pytest.fixture(params=PAIRS, ids="-".join)
def lm(request: pytest.FixtureRequest, tiny_model_and_processor: ModelFactory) -> AudioLM:
    kind, sound = request.param
    return AudioLM(*tiny_model_and_processor(kind, sound=sound))


def features(inputs: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if "features" in name}


@torch.no_grad()
@pytest.mark.parametrize(
    ("sound", "pad_audio_to_s", "duration_s", "speech_frames", "sound_frames"),
    [
        ("beats", None, 1.0, 50, 48),
        ("eat", None, 1.0, 50, 50),  # of 56
        ("beats", None, 30.0, 1500, 1496),
        ("eat", None, 30.0, 1500, 1500),  # of 1504
        ("beats", 30.0, 1.0, 1500, 48),  # silence is for Whisper alone
        ("beats", None, 0.1, 5, 0),
        ("beats", None, 33.0, 1650, 1648),
    ],
)
def test_sound_frames_take_the_speech_encoders_length(
    tiny_model_and_processor: ModelFactory,
    speech_like: Waveforms,
    sound: str,
    pad_audio_to_s: float | None,
    duration_s: float,
    speech_frames: int,
    sound_frames: int,
) -> None:
    model, processor = tiny_model_and_processor(sound=sound, pad_audio_to_s=pad_audio_to_s)
    inputs = processor.prepare([speech_like(duration_s, 0)], ["Hi?"])
    frames, mask = model.encode(**features(inputs))
    assert frames.shape == (1, speech_frames, 32 + 24)
    assert mask.all()
    assert model.sound_encoder is not None
    expected, _ = model.sound_encoder(inputs["sound_features"], inputs["sound_features_mask"])
    assert torch.equal(frames[:, :sound_frames, 32:], expected[:, :sound_frames])
    assert not frames[:, sound_frames:, 32:].any()
    speech, _ = model.speech_encoder(inputs["input_features"], inputs["input_features_mask"])
    assert torch.equal(frames[:, :, :32], speech)


def test_padding_and_cutting() -> None:
    speech, sound = torch.ones(2, 3, 2), torch.full((2, 2, 1), 7.0)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert join_frames(speech, mask, sound)[:, :, 2].tolist() == [[7, 7, 0], [7, 0, 0]]
    assert join_frames(speech[:, :1], mask[:, :1], sound)[:, :, 2].tolist() == [[7], [7]]


@torch.no_grad()
def test_each_encoder_has_a_norm_and_padding_is_zero_after_it(tiny_model_and_processor: ModelFactory) -> None:
    connector = tiny_model_and_processor(sound="beats")[0].connector
    assert isinstance(connector, WindowedQFormer)
    assert connector.sound_norm is not None
    torch.nn.init.constant_(connector.sound_norm.bias, 3.0)
    frames = torch.randn(1, 4, 56, generator=torch.Generator().manual_seed(0))
    frames[0, 2:, 32:] = 0
    found = connector.normalize(frames)
    assert torch.equal(found[:, :, :32], connector.norm(frames[:, :, :32]))
    assert torch.equal(found[0, :2, 32:], connector.sound_norm(frames[0, :2, 32:]))
    assert torch.equal(found[0, 2:, 32:], torch.zeros(2, 24))


def test_a_model_with_one_encoder_has_the_weights_it_had(tiny_model_and_processor: ModelFactory) -> None:
    one = tiny_model_and_processor()[0].state_dict()
    two = tiny_model_and_processor(sound="beats")[0].state_dict()
    new = {name for name in two.keys() - one.keys() if not name.startswith("sound_encoder.")}
    assert new == {"connector.sound_norm.weight", "connector.sound_norm.bias"}
    assert one.keys() <= two.keys()


@torch.no_grad()
def test_answers_are_about_what_both_encoders_hear(lm: AudioLM, speech_like: Waveforms) -> None:
    inputs = dict(lm.processor.prepare([speech_like(1.0, 0)], ["Hi?"]))
    other = lm.processor.prepare([speech_like(1.0, 1)], ["Hi?"])
    logits = lm.model(**inputs).logits
    for name in ("input_features", "sound_features"):
        assert not torch.allclose(lm.model(**{**inputs, name: other[name]}).logits, logits, atol=1e-3)


def test_a_batch_of_8_is_8_batches_of_1(lm: AudioLM, clips: list[np.ndarray]) -> None:
    together = lm.answer(clips, INSTRUCTIONS, max_new_tokens=8)
    alone = [
        lm.answer([clip], [instruction], max_new_tokens=8)[0]
        for clip, instruction in zip(clips, INSTRUCTIONS, strict=True)
    ]
    assert together == alone
    assert len({answer.text for answer in alone}) == 8
    with torch.no_grad():
        logits = lm.model(**lm.processor.prepare(clips, INSTRUCTIONS), logits_to_keep=1).logits[:, 0]
        for row, (clip, instruction) in enumerate(zip(clips, INSTRUCTIONS, strict=True)):
            expected = lm.model(**lm.processor.prepare([clip], [instruction]), logits_to_keep=1).logits[0, 0]
            torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=0)


def test_generate_hears_both_once_and_says_the_same_without_cache(lm: AudioLM, clips: list[np.ndarray]) -> None:
    model: Any = lm.model
    calls: list[tuple[int, ...]] = []
    model.sound_encoder.register_forward_hook(lambda _module, _inputs, output: calls.append(tuple(output[0].shape)))
    inputs = lm.processor.prepare([clips[1], clips[3]], INSTRUCTIONS[:2])
    cached = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert len(calls) == 1
    uncached = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False)
    assert cached.tolist() == uncached.tolist()
    beams = model.generate(**inputs, max_new_tokens=4, num_beams=2, num_return_sequences=2, do_sample=False)
    assert beams.shape[0] == 4


@torch.no_grad()
def test_a_saved_model_is_the_same(lm: AudioLM, clips: list[np.ndarray], tmp_path: Path) -> None:
    save_model(lm.model, lm.processor, tmp_path / "model")
    model, processor = load_model(tmp_path / "model")
    inputs = lm.processor.prepare(clips[:3], INSTRUCTIONS[:3])
    again = processor.prepare(clips[:3], INSTRUCTIONS[:3])
    assert inputs.keys() == again.keys()
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert torch.equal(model(**again).logits, lm.model(**inputs).logits)


@torch.no_grad()
def test_processor_and_model_agree_on_the_tokens(lm: AudioLM, clips: list[np.ndarray]) -> None:
    for clip in clips:
        inputs = lm.processor.prepare([clip], ["Hi?"])
        held = int((inputs["input_ids"] == lm.processor.audio_token_id).sum())
        found = features(inputs)
        assert lm.model.get_audio_features(**found).shape == (held, 64)


@torch.no_grad()
def test_a_training_batch_hears_what_an_answer_does(lm: AudioLM, clips: list[np.ndarray]) -> None:
    inputs = lm.processor.prepare(clips[:4], INSTRUCTIONS[:4])
    single = [
        {name: rows[0] for name, rows in lm.processor.feature_extractor([clip]).items() if not name.endswith("_mask")}
        for clip in clips[:4]
    ]
    padded = pad_features(single)
    assert padded.keys() == features(inputs).keys()
    for name, values in padded.items():
        # Not bit for bit: a matrix product of few rows, as a short clip by itself has, may round otherwise.
        torch.testing.assert_close(values, inputs[name], atol=1e-5, rtol=0)
    direct = collate([Example(i, "yes", **f) for i, f in zip(INSTRUCTIONS[:4], single, strict=True)], lm.processor)
    frames, mask = lm.model.encode(**padded)
    stored = [row[real] for row, real in zip(frames, mask, strict=True)]
    cached = collate(
        [Example(i, "yes", encoder_frames=f) for i, f in zip(INSTRUCTIONS[:4], stored, strict=True)], lm.processor
    )
    torch.testing.assert_close(lm.model(**direct).loss, lm.model(**cached).loss, atol=1e-5, rtol=0)


def test_gradients_reach_the_parts_that_learn(lm: AudioLM, clips: list[np.ndarray]) -> None:
    model = lm.model
    model.set_trainable({"sound_encoder"})
    model.train()
    assert model.sound_encoder is not None
    assert (model.sound_encoder.training, model.speech_encoder.training, model.connector.training) == (
        True,
        False,
        False,
    )
    example = {name: rows[0] for name, rows in lm.processor.feature_extractor([clips[2]]).items() if "mask" not in name}
    model(**collate([Example("Hi?", "yes", **example)], lm.processor)).loss.backward()
    learns = {name.partition(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert learns == {"sound_encoder"}
    counts = model.num_parameters_by_part()
    assert counts["sound_encoder"] == sum(weight.numel() for weight in model.sound_encoder.parameters())
    assert counts["total"] == sum(value for name, value in counts.items() if name != "total")


def test_features_and_encoders_go_together(
    lm: AudioLM, tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    one, processor = tiny_model_and_processor()
    inputs = dict(processor.prepare([speech_like(1.0, 0)], ["Hi?"]))
    both = dict(lm.processor.prepare([speech_like(1.0, 0)], ["Hi?"]))
    with pytest.raises(ValueError, match=r"there is a sound encoder but no `sound_features`; use the processor"):
        lm.model(**inputs)
    with pytest.raises(ValueError, match=r"there is `sound_features` but no sound encoder; use the processor"):
        one(**both)
