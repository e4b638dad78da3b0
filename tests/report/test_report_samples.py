from __future__ import annotations

import base64
import io
import json

import numpy as np
import soundfile

from stapes.report import collect
from stapes.report.samples import choose_samples, embed_audio


def keep(folder, variant, wanted):
    """Keep only the predictions of a variant that `wanted` says."""
    path = folder / "eval" / variant / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if wanted(line)))


def edit(folder, change):
    """Change the predictions of all variants."""
    for path in folder.glob("eval/*/predictions.jsonl"):
        lines = [change(json.loads(line), path.parent.name) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_tasks_take_turns_and_the_seed_decides(finished_run):
    variants = collect([finished_run]).variants
    chosen = choose_samples(variants, 8, seed=0)
    assert [sample.task for sample in chosen] == ["asr"] * 3 + ["audiocaption"] * 3 + ["qa"] * 2
    assert len({sample.id for sample in chosen}) == 8
    assert choose_samples(variants, 8, seed=0) == chosen
    others = [[sample.id for sample in choose_samples(variants, 8, seed=seed)] for seed in range(1, 4)]
    assert any(ids != [sample.id for sample in chosen] for ids in others)
    assert choose_samples(variants, 0, seed=0) == []
    assert len(choose_samples(variants, 99, seed=0)) == 36


def test_easy_and_hard_ones_are_among_them(run_folder):
    def change(line, variant):
        number = int(line["id"].rpartition("-")[2])
        words = line["target"].split()
        # Clips 0 to 3 are understood, 4 to 7 half, 8 to 11 not at all.
        right = {0: len(words), 1: (len(words) + 1) // 2, 2: 0}[number // 4]
        return {**line, "text": " ".join(words[:right] + ["zz"] * (len(words) - right))}

    edit(run_folder, change)
    for seed in range(5):
        chosen = choose_samples(collect([run_folder]).variants, 9, seed=seed)
        thirds = [int(sample.id.rpartition("-")[2]) // 4 for sample in chosen if sample.task == "asr"]
        assert thirds == [0, 1, 2]


def test_variants_that_say_the_same_share_a_row(run_folder):
    def change(line, variant):
        return {**line, "text": "zz" if variant == "quantize" else line["target"], "truncated": variant == "quantize"}

    edit(run_folder, change)
    asr, caption, answer = choose_samples(collect([run_folder]).variants, 3, seed=0)
    assert [found.labels for found in asr.answers] == [("tune", "merge_lora"), ("quantize",)]
    assert [found.truncated for found in asr.answers] == [False, True]
    words = len(asr.target.split())
    assert [found.verdict for found in asr.answers] == [
        f"as written, {n} words differ from the target's {words}" for n in (0, words)
    ]
    assert [piece.kind for piece in asr.answers[0].pieces or ()] == ["same"]
    assert [found.verdict for found in caption.answers] == [
        "words in common: F1 100 %",
        "words in common: F1 0 %",
    ]
    assert caption.answers[0].pieces is None
    assert [found.verdict for found in answer.answers] == ["the target's words", "other words than the target's"]


def test_samples_that_most_variants_answered_come_first(run_folder):
    keep(run_folder, "quantize", lambda line: line["id"] in ("asr-3", "qa-5"))
    chosen = choose_samples(collect([run_folder]).variants, 8, seed=0)
    assert [sample.id for sample in chosen] == ["asr-3", "qa-5"]
    keep(run_folder, "quantize", lambda line: False)
    (run_folder / "eval/quantize/predictions.jsonl").write_text('{"id": "other", "task": "qa", "audio": "gone.wav", '
        '"prompt": "?", "target": "no", "text": "no", "num_tokens": 1, "truncated": false}\n')  # fmt: skip
    chosen = choose_samples(collect([run_folder]).variants, 2, seed=0)
    assert [sample.not_asked for sample in chosen] == [("quantize",), ("quantize",)]


def decode(clip):
    head, _, data = clip.uri.partition(",")
    assert head == "data:audio/mpeg;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


def test_audio_is_what_the_models_heard(tmp_path):
    seconds = np.arange(48_000) / 48_000
    stereo = np.stack([np.sin(2 * np.pi * 440 * seconds), np.zeros(48_000)], axis=1) * 0.5
    soundfile.write(tmp_path / "a.flac", stereo, 48_000)
    clip = embed_audio(tmp_path / "a.flac")
    samples, rate = decode(clip)
    assert (samples.ndim, rate, clip.note) == (1, 16_000, "")
    assert abs(len(samples) - 16_000) < 2_500  # MP3 pads to whole frames
    middle = samples[4_000:12_000]
    assert abs(np.abs(np.fft.rfft(middle)).argmax() * 2 - 440) <= 2
    assert 0.2 < np.abs(middle).max() < 0.3  # the mean of both channels


def test_long_audio_is_cut_and_says_so(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(16_000 * 61), 16_000)
    clip = embed_audio(tmp_path / "long.wav")
    assert clip.note == "the first 60 of 61 s"
    assert len(decode(clip)[0]) / 16_000 < 60.5


def test_audio_that_cannot_be_heard_says_why(tmp_path):
    clip = embed_audio(tmp_path / "gone.wav")
    assert (clip.uri, clip.note) == ("", "gone.wav is not to be heard: the file is gone, or named from another folder")
    (tmp_path / "text.wav").write_text("no audio")
    clip = embed_audio(tmp_path / "text.wav")
    assert clip.uri == ""
    assert clip.note.startswith("text.wav cannot be read: ")
