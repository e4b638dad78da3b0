"""A stage whose objective is CTC: what learns, from what, and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from stapes.data.collator import IGNORE, Example, collate_hearing
from stapes.data.sample import load_manifest, transcript_of
from stapes.errors import ManifestError, StapesError
from stapes.model import CTCVocabulary, WordList, letter_numbers, phone_numbers
from stapes.recipe import Stage
from stapes.train.stage import train_stage

SPOKEN = WordList({"a": -1.0, "b": -1.0}, {"a": ["e", "A"], "b": ["bi"]})
LLM_SIDE = ("detail", "sound_in", "sound_out", "norm_sound")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four clips of two tones each, called a and b, and one of noise in which nothing is said."""
    lines = []
    for name, pitches in {"ab": (300, 900), "ba": (900, 300), "aa": (300, 300), "bb": (900, 900)}.items():
        time_s = np.arange(6_400) / 16_000
        gap = np.zeros(3_200)
        tones = [part for pitch in pitches for part in (0.4 * np.sin(2 * np.pi * pitch * time_s), gap)]
        soundfile.write(tmp_path / f"{name}.wav", np.concatenate(tones), 16_000)
        lines.append({"id": name, "audio": f"{name}.wav", "target": " ".join(name).upper() + "."})
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 16_000), 16_000)
    lines.append({"id": "noise", "audio": "noise.wav", "task": "audiocaption", "target": "a hiss"})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "m.jsonl"


def stage_of(manifest: Path, **changes: object) -> Stage:
    settings = {
        "objective": "ctc",
        "data": {manifest: 1},
        "valid": [manifest],
        "max_steps": 40,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 5,
        "save_steps": 20,
        "logging_steps": 10,
    }
    return Stage.model_validate(settings | changes)


def test_ctc_teaches_the_connector_alone(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("ctc_compressor")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = stage_of(manifest)
    train_stage(model, processor, stage, name="hear", seed=0, folder=tmp_path / "hear", cache=tmp_path / "cache")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    # What the LLM is told by has no part in what CTC hears.
    learnt = {name for name in before if name.startswith("connector.")}
    learnt = {name for name in learnt if name.split(".")[1] not in (*LLM_SIDE, "token_embeddings")}
    assert changed == learnt
    lines = [json.loads(line) for line in (tmp_path / "hear/losses.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < 0.7 * lines[0]["loss"]
    assert all(np.isfinite(losses))


def test_what_ctc_taught_stays_when_the_llm_learns(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("ctc_compressor")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = stage_of(manifest, objective="answer", max_steps=3, save_steps=3)
    train_stage(model, processor, stage, name="answer", seed=0, folder=tmp_path / "answer", cache=tmp_path / "cache")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in changed} == set(LLM_SIDE)
    assert all(name.startswith("connector.") for name in changed)


def test_a_question_does_not_tell_what_is_said(manifest, tmp_path, tiny_model_and_processor):
    line = {"id": "q", "audio": "ab.wav", "task": "qa", "prompt": "Is it?", "target": "yes"}
    manifest.write_text(manifest.read_text() + json.dumps(line) + "\n")
    assert [transcript_of(sample) for sample in load_manifest(manifest)] == ["A B.", "B A.", "A A.", "B B.", "", None]
    model, processor = tiny_model_and_processor("ctc_compressor")
    with pytest.raises(ManifestError, match="sample `q` is for qa and does not tell what is said"):
        train_stage(
            model, processor, stage_of(manifest), name="hear", seed=0, folder=tmp_path / "h", cache=tmp_path / "cache"
        )


def test_another_connector_cannot_learn_by_ctc(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("stacked_mlp")
    stage = stage_of(manifest)
    with pytest.raises(StapesError, match="stage `hear`: `objective: ctc` teaches a ctc_compressor, not a stacked_mlp"):
        train_stage(model, processor, stage, name="hear", seed=0, folder=tmp_path / "h", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="a stacked_mlp cannot learn to hear; take a `ctc_compressor`"):
        model.hearing_loss(torch.zeros(1, 2, dtype=torch.int64), "ctc", torch.zeros(1, 80, 20))


def test_the_llm_has_no_part_in_it(manifest):
    with pytest.raises(ValidationError, match="`objective: ctc` has no use for lora; take that out of `trainable`"):
        stage_of(manifest, trainable=["connector", "lora"], lora={"r": 4})


def test_transcripts_are_spelt_in_pieces(tiny_tokenizer):
    vocabulary = CTCVocabulary(tiny_tokenizer, 0)
    frames = torch.zeros(4, 8)
    batch = collate_hearing(
        [Example("", "", encoder_frames=frames, transcript=text) for text in ("A b.", "")], vocabulary, "ctc"
    )
    rows = batch["labels"].tolist()
    assert [vocabulary.decode([number for number in row if number != IGNORE]) for row in rows] == ["a b", ""]
    assert [row[0] for row in rows] == [IGNORE, IGNORE]
    assert batch["encoder_frames"].shape == (2, 4, 8)
    with pytest.raises(ValueError, match="has no transcript; `objective: ctc` cannot learn from it"):
        collate_hearing([Example("", "yes", encoder_frames=frames)], vocabulary, "ctc")


def test_the_loss_is_a_mean_over_the_pieces_of_all_batches(tiny_model_and_processor):
    model, _ = tiny_model_and_processor("ctc_compressor")
    labels = torch.tensor([[IGNORE, 3, 5, IGNORE], [IGNORE, 7, 2, 9]])
    frames, mask = torch.randn(2, 60, 32), torch.ones(2, 60, dtype=torch.bool)
    whole = model.hearing_loss(labels, "ctc", encoder_frames=frames, encoder_frames_mask=mask)
    parts = [
        model.hearing_loss(
            labels[[i]], "ctc", encoder_frames=frames[[i]], encoder_frames_mask=mask[[i]], num_items_in_batch=5
        )
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)
    # Frames without a mask are all real.
    torch.testing.assert_close(model.hearing_loss(labels, "ctc", encoder_frames=frames), whole)


def test_where_nothing_is_said_nothing_divides_the_loss(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("ctc_compressor")
    frames, labels = torch.randn(2, 60, 32), torch.full((2, 1), IGNORE)
    loss = model.hearing_loss(labels, "ctc", encoder_frames=frames, num_items_in_batch=torch.tensor(0))
    assert 0 < loss.item() < float("inf")
    sounds = tmp_path / "sounds.jsonl"
    sounds.write_text(manifest.read_text().splitlines()[-1] + "\n")
    stage = stage_of(sounds, valid=[sounds], max_steps=2, save_steps=1, logging_steps=1)
    train_stage(model, processor, stage, name="s", seed=0, folder=tmp_path / "s", cache=tmp_path / "cache")
    lines = [json.loads(line) for line in (tmp_path / "s/losses.jsonl").read_text().splitlines()]
    losses = [line.get("eval_loss", line.get("loss")) for line in lines]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("symbols", ["letters", "phones"])
def test_letters_and_phones_are_learnt_alone_or_beside_the_pieces(
    manifest, tmp_path, tiny_model_and_processor, symbols
):
    model, processor = tiny_model_and_processor("ctc_compressor", **{f"ctc_{symbols}": 64})
    processor.words = SPOKEN
    learnt = {}
    for objective, max_steps in ((symbols, 40), ("ctc", 3)):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        stage = stage_of(manifest, objective=objective, max_steps=max_steps)
        folder = tmp_path / objective
        train_stage(model, processor, stage, name=objective, seed=0, folder=folder, cache=tmp_path / "cache")
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert all(name.startswith("connector.") for name in changed)
        learnt[objective] = {name.split(".")[1] for name in changed}
    assert learnt[symbols] == {symbols}
    assert learnt["ctc"] > {symbols, "conv", "to_llm"}
    lines = [json.loads(line) for line in (tmp_path / symbols / "losses.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < 0.7 * lines[0]["loss"]


def test_a_stage_for_letters_wants_a_connector_that_has_them(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("ctc_compressor")
    stage = stage_of(manifest, objective="letters")
    with pytest.raises(StapesError, match="stage `spell`: the connector hears no letters"):
        train_stage(model, processor, stage, name="spell", seed=0, folder=tmp_path / "s", cache=tmp_path / "cache")


def test_letters_come_beside_pieces_or_alone(tiny_tokenizer):
    vocabulary = CTCVocabulary(tiny_tokenizer, 0)
    examples = [Example("", "", encoder_frames=torch.zeros(4, 8), transcript=text) for text in ("A b'c.", "")]
    beside = collate_hearing(examples, vocabulary, "ctc", beside=["letters"])
    spelt = letter_numbers("a b'c")
    assert beside["beside"]["letters"].tolist() == [spelt, [IGNORE] * len(spelt)]
    assert torch.equal(beside["labels"], collate_hearing(examples, vocabulary, "ctc")["labels"])
    alone = collate_hearing(examples, vocabulary, "letters", beside=["letters"])
    assert alone["labels"].tolist() == [[IGNORE, *spelt], [IGNORE] * (1 + len(spelt))]
    assert "beside" not in alone


def test_the_loss_of_letters_is_added_to_that_of_pieces(tiny_model_and_processor):
    model, _ = tiny_model_and_processor("ctc_compressor", ctc_letters=64)
    labels, letters = torch.tensor([[IGNORE, 3, 5]]), torch.tensor([letter_numbers("a bc")])
    frames = {"encoder_frames": torch.randn(1, 60, 32), "encoder_frames_mask": torch.ones(1, 60, dtype=torch.bool)}
    both = model.hearing_loss(labels, "ctc", beside={"letters": letters}, **frames)
    of_pieces = model.hearing_loss(labels, "ctc", **frames)
    of_letters = model.hearing_loss(torch.nn.functional.pad(letters, (1, 0), value=IGNORE), "letters", **frames)
    torch.testing.assert_close(2 * both, 2 * of_pieces + 4 * of_letters)


def test_phones_are_those_of_the_usual_way_to_speak_a_word(tiny_tokenizer):
    words = WordList({"the": -1.0, "c": -2.0}, {"the": ["DA", "Di"], "c": ["si"]})
    vocabulary = CTCVocabulary(tiny_tokenizer, 0)
    examples = [Example("", "", encoder_frames=torch.zeros(4, 8), transcript=text) for text in ("The C.", "")]
    spoken = phone_numbers("DA si")
    alone = collate_hearing(examples, vocabulary, "phones", words=words)
    assert alone["labels"].tolist() == [[IGNORE, *spoken], [IGNORE] * (1 + len(spoken))]
    beside = collate_hearing(examples, vocabulary, "ctc", words=words, beside=["letters", "phones"])["beside"]
    assert beside["phones"].tolist() == [spoken, [IGNORE] * len(spoken)]
    assert beside["letters"][0].tolist() == letter_numbers("the c")


def test_a_stage_for_phones_wants_to_know_how_words_are_spoken(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("ctc_compressor", ctc_phones=64)
    stage = stage_of(manifest, objective="phones", max_steps=1)
    train = partial(train_stage, model, processor, name="speak", seed=0, cache=tmp_path / "cache")
    for words in (None, WordList({"a": -1.0, "b": -1.0})):
        processor.words = words
        with pytest.raises(StapesError, match="stage `speak`: to teach phones it has to be known how words are spoken"):
            train(stage=stage, folder=tmp_path / "speak")
    processor.words = WordList({"a": -1.0}, {"a": ["e"]})
    with pytest.raises(
        ManifestError, match=r"m\.jsonl: sample `ab` holds 'b', and `words` do not tell how that is spoken"
    ):
        train(stage=stage, folder=tmp_path / "speak")


def test_new_words_are_left_out_where_they_only_measure(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("ctc_compressor", ctc_phones=64)
    processor.words = WordList({"a": -1.0}, {"a": ["e"]})
    lines = manifest.read_text().splitlines()
    (tmp_path / "known.jsonl").write_text("".join(f"{line}\n" for line in lines if "noise" in line or '"aa"' in line))
    stage = stage_of(tmp_path / "known.jsonl", objective="phones", max_steps=1, save_steps=1, valid=[manifest])
    with pytest.warns(UserWarning, match=r"m\.jsonl: 3 of 5 samples hold words that `words` lack; they are left out"):
        train_stage(model, processor, stage, name="s", seed=0, folder=tmp_path / "s", cache=tmp_path / "cache")
    losses = [json.loads(line).get("eval_loss") for line in (tmp_path / "s/losses.jsonl").read_text().splitlines()]
    assert np.isfinite([loss for loss in losses if loss is not None]).all()
    (tmp_path / "new.jsonl").write_text(next(f"{line}\n" for line in lines if '"bb"' in line))
    stage = stage_of(tmp_path / "known.jsonl", objective="phones", max_steps=1, valid=[tmp_path / "new.jsonl"])
    none_left = r"^train\.s\.valid: every sample holds words that `words` lack; none is left"
    with pytest.warns(UserWarning, match="1 of 1 samples"), pytest.raises(StapesError, match=none_left):
        train_stage(model, processor, stage, name="s", seed=0, folder=tmp_path / "t", cache=tmp_path / "cache")


def test_sounds_are_named_by_a_stage_of_their_own(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("ctc_compressor", sound_layer=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = stage_of(manifest, objective="sound", max_steps=200, learning_rate=5e-2)
    train_stage(model, processor, stage, name="name", seed=0, folder=tmp_path / "name", cache=tmp_path / "cache")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("connector.namer.")}
    # The four clips of tones are to be "person speaking", the noise "hiss"; the tiny tokenizer's pieces are letters.
    speech, noise = 4 * " person speaking", " hiss"
    least = (_entropy(speech) + _entropy(noise)) / len(speech + noise)
    if_all_were_alike = _entropy(speech + noise) / len(speech + noise)
    lines = [json.loads(line) for line in (tmp_path / "name/losses.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert least <= losses[-1] < (least + if_all_were_alike) / 2


def _entropy(letters: str) -> float:
    return sum(-number * np.log(number / len(letters)) for number in Counter(letters).values())


def test_a_connector_without_names_for_sounds_is_refused(manifest, tmp_path, tiny_model_and_processor):
    model, processor = tiny_model_and_processor("ctc_compressor")
    with pytest.raises(StapesError, match="stage `name`: the connector names no sounds"):
        train_stage(
            model,
            processor,
            stage_of(manifest, objective="sound"),
            name="name",
            seed=0,
            folder=tmp_path / "n",
            cache=tmp_path / "cache",
        )
    with pytest.raises(ValidationError, match="`objective: sound` has no use for speech_encoder"):
        stage_of(manifest, objective="sound", trainable=["connector", "speech_encoder"])


def test_captions_are_learnt_as_their_words(tiny_tokenizer):
    vocabulary = CTCVocabulary(tiny_tokenizer, 0)
    frames = torch.zeros(4, 8)
    examples = [
        Example("", "A dog barks.", encoder_frames=frames, transcript=""),
        Example("", "Hello.", encoder_frames=frames, transcript="Hello."),
    ]
    rows = collate_hearing(examples, vocabulary, "sound")["labels"].tolist()
    heard = [vocabulary.decode([number for number in row if number != IGNORE]) for row in rows]
    assert heard == ["dog barks", "person speaking"]
