from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stapes.data.mixture import Draw
from stapes.data.sample import load_manifest
from stapes.errors import ManifestError, StapesError
from stapes.model import StapesForConditionalGeneration, StapesProcessor
from stapes.recipe import Augment
from stapes.train.examples import Examples
from stapes.train.features import FeatureCache, encoder_identity, feature_path

GAIN = {"gain": {"p": 1, "db": [-20, 20]}}


@pytest.fixture
def parts(tiny_model_and_processor: Callable) -> tuple[StapesForConditionalGeneration, StapesProcessor]:
    return tiny_model_and_processor("stacked_mlp")


@pytest.fixture
def make_examples(clips: Path, tmp_path: Path, parts: tuple) -> Callable[..., Examples]:
    """Factory `(augment=None, cached=True) -> Examples` of many.jsonl and few.jsonl."""

    def make(augment: dict[str, Any] | None = None, cached: bool = True) -> Examples:
        corpora = [load_manifest(clips / name) for name in ("many.jsonl", "few.jsonl")]
        section = Augment.model_validate(augment) if augment else None
        return Examples(corpora, parts[1], 5, section, FeatureCache(tmp_path / "features") if cached else None)

    return make


def fill(parts: tuple, examples: Examples, draws: list[Draw], share: tuple[int, int] = (0, 1)) -> int:
    assert examples.cache is not None
    return examples.cache.fill(parts[0], examples, draws, share)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*.npy"))


def test_a_cached_example_is_what_the_encoder_gives(parts: tuple, make_examples: Callable[..., Examples]) -> None:
    model, _ = parts
    cached, direct = make_examples(), make_examples(cached=False)
    fill(parts, cached, cached.draws())
    for draw in cached.draws():
        features = direct[draw].input_features
        assert features is not None
        frames, _ = model.encode(features[None])
        stored = cached[draw].encoder_frames
        assert stored is not None
        assert stored.shape == frames[0].shape
        # Whatever else is stored at the same time: a run that was cut off there has to end with the same weights.
        assert torch.equal(stored, frames[0].half().float())
        assert (cached[draw].instruction, cached[draw].target) == (direct[draw].instruction, direct[draw].target)


def test_what_is_stored_is_not_encoded_again(parts: tuple, make_examples: Callable[..., Examples]) -> None:
    examples = make_examples()
    draws = examples.draws()
    again = [Draw(corpus, index, 7) for corpus, index, _ in draws]
    assert fill(parts, examples, draws[:4]) == 4
    assert fill(parts, examples, [*draws, *again]) == 9
    assert fill(parts, examples, draws) == 0


def test_augmented_clips_have_copies_that_take_turns(parts: tuple, make_examples: Callable[..., Examples]) -> None:
    examples = make_examples({**GAIN, "copies": 3})
    draws = [Draw(0, 0, draw) for draw in range(7)]
    assert fill(parts, examples, draws) == 3
    first, second, third, *others = [examples[draw].encoder_frames.numpy() for draw in draws]  # type: ignore[union-attr]
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    for frames, earlier in zip(others, [first, second, third, first], strict=True):
        assert np.array_equal(frames, earlier)
    # More copies leave those that are there as they are.
    assert fill(parts, make_examples({**GAIN, "copies": 5}), draws) == 2
    # Noise on what is stored is new each time and stores nothing new.
    disturbed = make_examples({**GAIN, "copies": 3, "frames": {}})
    assert fill(parts, disturbed, draws) == 0
    once, again, later = [disturbed[Draw(0, 0, draw)].encoder_frames.numpy() for draw in (0, 0, 3)]  # type: ignore[union-attr]
    assert np.array_equal(once, again)
    assert once.shape == later.shape == first.shape
    assert not np.array_equal(once, later)
    # What changes nothing before the encoder needs no copies, and shares the output of the clip as it is.
    alone = make_examples({"copies": 3, "frames": {}})
    assert fill(parts, alone, draws) == 1
    assert fill(parts, make_examples(), draws) == 0
    # Without a cache each draw is a version of its own.
    assert [make_examples(GAIN, cached=False).version(draw) for draw in draws] == list(range(7))


def test_processes_fill_the_cache_between_them(
    parts: tuple, make_examples: Callable[..., Examples], tmp_path: Path
) -> None:
    examples = make_examples()
    draws = examples.draws()
    # One after another: the second must not take the rest for the whole.
    counts = [fill(parts, examples, draws, (rank, 3)) for rank in range(3)]
    assert sorted(counts) == [4, 4, 5]
    assert len(files(tmp_path)) == 13


def test_a_file_is_named_by_audio_and_augmentation(tmp_path: Path, clips: Path) -> None:
    clip, other = tmp_path / "clip.wav", clips / "many1.wav"
    clip.write_bytes((clips / "many0.wav").read_bytes())
    plain = feature_path(tmp_path, (clip,), None)
    assert plain == feature_path(tmp_path, (clip,), None)
    assert plain.parent.parent == tmp_path
    names = {
        plain,
        feature_path(tmp_path, (other,), None),
        feature_path(tmp_path, (clip, other), None),
        feature_path(tmp_path, (clip,), ("gain", 1)),
        feature_path(tmp_path, (clip,), ("gain", 2)),
    }
    assert len(names) == 5
    os.utime(clip, ns=(1, 1))
    assert feature_path(tmp_path, (clip,), None) not in names


def test_recordings_that_are_mixed_in_count(
    make_examples: Callable[..., Examples], tmp_path: Path, clips: Path
) -> None:
    recording = tmp_path / "noise" / "noise.wav"
    recording.parent.mkdir()
    recording.write_bytes((clips / "many0.wav").read_bytes())
    noise = {"noise": {"p": 1, "snr_db": [0, 0], "folder": recording.parent}}
    before = make_examples(noise).cache_path(Draw(0, 0, 0))
    assert make_examples(noise).cache_path(Draw(0, 0, 0)) == before
    os.utime(recording, ns=(1, 1))
    assert make_examples(noise).cache_path(Draw(0, 0, 0)) != before


def test_an_encoder_is_named_by_all_that_decides_its_output(tiny_model_and_processor: Callable) -> None:
    def identity(change: Callable[[StapesForConditionalGeneration, StapesProcessor], object]) -> str:
        model, processor = tiny_model_and_processor()
        change(model, processor)
        return encoder_identity(model, processor.feature_extractor)

    def other_connector(model: Any, _: StapesProcessor) -> None:
        torch.nn.init.ones_(model.connector.projection.weight)

    def other_weights(model: Any, _: StapesProcessor) -> None:
        model.speech_encoder.layer_norm.weight.data.add_(1e-3)

    def other_dtype(model: Any, _: StapesProcessor) -> None:
        model.speech_encoder.to(torch.bfloat16)

    def other_heads(model: Any, _: StapesProcessor) -> None:
        model.speech_encoder.config.encoder_attention_heads = 4

    def other_front_end(_: Any, processor: Any) -> None:
        processor.feature_extractor.pad_to_s = 30.0

    same = identity(lambda model, processor: None)
    assert identity(other_connector) == same
    changed = {identity(change) for change in (other_weights, other_dtype, other_heads, other_front_end)}
    assert len(changed - {same}) == 4


def test_a_full_disk_leaves_no_half_file_and_names_it(parts: tuple, make_examples: Callable[..., Examples]) -> None:
    examples = make_examples()
    path = examples.cache_path(Draw(0, 0, 0))
    path.parent.mkdir(parents=True)
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as full:
        fill(parts, examples, [Draw(0, 0, 0)])
    assert full.value.filename == str(path)
    assert list(path.parent.iterdir()) == []
    assert fill(parts, examples, [Draw(0, 0, 0)]) == 1


def test_a_damaged_file_is_named(parts: tuple, make_examples: Callable[..., Examples]) -> None:
    examples = make_examples()
    fill(parts, examples, examples.draws())
    path = examples.cache_path(Draw(0, 0, 0))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StapesError, match=rf"{path.name}: stored encoder output cannot be read .*; delete the file"):
        examples[Draw(0, 0, 0)]


def test_output_beyond_float16_is_not_stored(parts: tuple, make_examples: Callable[..., Examples]) -> None:
    examples = make_examples()
    parts[0].speech_encoder.layer_norm.weight.data.fill_(1e6)
    with pytest.raises(StapesError, match="not finite in float16; set `feature_cache: false`"):
        fill(parts, examples, examples.draws())


@pytest.mark.parametrize(("key", "what"), [("prompt", "question"), ("target", "target")])
def test_the_audio_token_in_a_text_is_named_by_its_line_before_training(
    key: str, what: str, clips: Path, tmp_path: Path, parts: tuple
) -> None:
    _, processor = parts
    sample = {"id": "a", "audio": str(clips / "many0.wav"), "task": "qa", "prompt": "Who?", "target": "Ann."}
    manifest = tmp_path / "few.jsonl"
    manifest.write_text(json.dumps(sample | {key: f"Who {processor.audio_token}?"}) + "\n")
    with pytest.raises(ManifestError) as caught:
        Examples([load_manifest(manifest)], processor, 5)
    assert str(caught.value) == (
        f"{manifest}:1: sample `a`: the {what} holds the audio token '{processor.audio_token}'; take it out"
    )
