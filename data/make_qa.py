"""Write qa_train.jsonl and qa_test.jsonl: closed questions whose answers follow from the other manifests.

    .venv/bin/python data/make_qa.py

Two questions, each with as many clips that want "yes" as clips that want "no": is someone speaking, and is a drum
being hit. Questions for training come from *_train, questions for testing from *_test. Clips about which people could
disagree are left out: robots and a choir for the first question, mixed and glitchy percussion for the second.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

from stapes.data.sample import Sample, load_manifest, write_manifest

HERE = Path(__file__).resolve().parent

SPEAKING = (
    "Is someone speaking?",
    "Do you hear a voice speaking?",
    "Does this recording contain speech? Answer yes or no.",
    "Is this a person talking?",
    "Can you hear spoken words? Answer with one word.",
)
DRUM = (
    "Is a drum being hit?",
    "Do you hear a drum?",
    "Does this recording contain drums? Answer yes or no.",
    "Is this the sound of a drum?",
    "Can you hear drumming? Answer with one word.",
)


def is_speaking(sample: Sample) -> bool | None:
    """Tell whether a clip holds speech, or None if that is a matter of opinion."""
    if sample.task == "asr":
        return True
    return None if re.search(r"robot|choir|person", sample.target) else False


def is_drum(sample: Sample) -> bool | None:
    """Tell whether a clip holds a drum, or None if that is a matter of opinion."""
    if re.search(r"\bdrum\b", sample.target) and sample.task == "audiocaption":
        return True
    return None if re.search(r"music|glitchy|boom|cymbal|wood block", sample.target) else False


def make_questions(
    clips: list[Sample],
    name: str,
    wordings: tuple[str, ...],
    answer: Callable[[Sample], bool | None],
    chance: random.Random,
) -> list[Sample]:
    """Ask one question about as many clips that want "yes" as clips that want "no"."""
    groups = [[clip for clip in clips if answer(clip) is wanted] for wanted in (True, False)]
    size = min(map(len, groups))
    return [
        Sample(
            id=f"{name}-{clip.id}",
            audio=clip.audio,
            duration_s=clip.duration_s,
            task="qa",
            prompt=chance.choice(wordings),
            target=word,
            source=clip.source,
        )
        for word, group in zip(("yes", "no"), groups, strict=True)
        for clip in chance.sample(group, size)
    ]


def main(folder: Path = HERE) -> None:
    """Write both manifests to `folder`; the same speech_* and sounds_* manifests always give the same questions."""
    for split in ("train", "test"):
        chance = random.Random(split)
        clips = [*load_manifest(HERE / f"speech_{split}.jsonl"), *load_manifest(HERE / f"sounds_{split}.jsonl")]
        questions = [
            *make_questions(clips, "speaking", SPEAKING, is_speaking, chance),
            *make_questions(clips, "drum", DRUM, is_drum, chance),
        ]
        chance.shuffle(questions)
        write_manifest(questions, folder / f"qa_{split}.jsonl")


if __name__ == "__main__":
    main()
