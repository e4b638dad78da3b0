"""Write the manifests of questions that stapes-tiny learns from and is tested with.

    python models/stapes-tiny/make_questions.py DATA MORE[,MORE…] OUT

DATA holds arctic_*, speech_* and sounds_* manifests, MORE are manifests of `stapes data synth` and
make_sounds.py. OUT gets, for `train` and `test`: speaking_*.jsonl (is someone speaking?), drum_*.jsonl (is a drum being
hit?), animal_*.jsonl (which animal?), instrument_*.jsonl (which instrument?) and count_*.jsonl (how many words?). Yes
and no are equally frequent. Questions for training come from *_train and MORE, those for testing from *_test alone.
For training there are also count_real_train.jsonl (the words of real speech, and more of it) and described_train.jsonl
(speech, described as one describes a sound).
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stapes.data.sample import Sample, load_manifest, sample_duration_s, write_manifest
from stapes.data.spoken import spoken_words

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
)
ANIMAL = ("Which animal is it?", "What animal do you hear?", "Name the animal.")
INSTRUMENT = ("What instrument is played?", "Which instrument do you hear?", "Name the instrument.")
COUNT = ("How many words are said?", "Count the words.", "How many words does the speaker say?")
SPEECH = "a person speaks"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]

INSTRUMENTS = (
    *("tabla", "bass drum", "snare drum", "tom drum", "kick drum", "drum kit", "drum", "cymbal", "guitar", "violin"),
    *("piano", "synthesizer", "bugle", "bassoon", "wood block"),
)
# Of make_sounds.py, whose clips name their source.
MORE_INSTRUMENTS = (
    "accordion|bagpipes|banjo|cello|clarinet|flute|glockenspiel|gong|harmonica|harp|horn|maracas|oboe|organ|saxophone|"
    "tambourine|trombone|trumpet|ukulele|vibraphone|xylophone"
)
MORE_ANIMALS = (
    "bat|bear|bee|bird|boar|bull|bumblebee|camel|canary|cat|chick|chimpanzee|cicada|cow|coyote|cricket|crow|deer|dog|"
    "dolphin|donkey|duck|eagle|elephant|frog|giraffe|goat|goose|gorilla|grasshopper|hawk|hen|horse|hyena|jaguar|kitten|"
    "lamb|leopard|lion|llama|loon|lynx|monkey|moose|mouse|owl|parrot|peacock|penguin|pig|pigeon|puppy|quail|rabbit|"
    "raccoon|rooster|sea lion|seagull|sheep|snake|squirrel|swan|tiger|toucan|turkey|vulture|whale|wolf|yak|zebra"
)


def is_speaking(sample: Sample) -> str | None:
    """Answer for a clip, or None if that is a matter of opinion."""
    if sample.task == "asr":
        return "yes" if spoken_words(sample.target) else None
    return None if re.search(r"robot|choir|person|man|someone|crowd|baby", sample.target) else "no"


def is_drum(sample: Sample) -> str | None:
    """Answer for a clip, or None if that is a matter of opinion."""
    if sample.task == "asr":
        return "no"
    if re.search(r"\b(drum|tabla)\b", sample.target):
        return "yes"
    return None if re.search(r"music|glitchy|boom|cymbal|wood block", sample.target) else "no"


def which_animal(sample: Sample) -> str | None:
    """Take the animal out of a caption: its noun, in captions of clips that are filed under animals."""
    if sample.task == "audiocaption" and sample.source is not None:
        found = re.match(rf"an? ({MORE_ANIMALS})\b", sample.target)
        return found and found[1]
    if sample.task != "audiocaption" or "animals_" not in sample.id:
        return None
    words = re.sub(r"^(a|an|the|two) ", "", sample.target).split()
    return " ".join(words[:2]) if words[0] == "sea" else words[0]


def which_instrument(sample: Sample) -> str | None:
    """Take the instrument out of a caption: the longest name that stands in it."""
    if sample.task != "audiocaption":
        return None
    names = INSTRUMENTS if sample.source is None else (*INSTRUMENTS, *MORE_INSTRUMENTS.split("|"))
    return next((name for name in names if re.search(rf"\b{name}\b", sample.target)), None)


def how_many_words(sample: Sample) -> str | None:
    """Count what is said, up to twelve words."""
    count = len(spoken_words(sample.target).split()) if sample.task == "asr" else 0
    return NUMBERS[count] if 0 < count < len(NUMBERS) else None


QUESTIONS: dict[str, tuple[Sequence[str], Callable[[Sample], str | None]]] = {
    "speaking": (SPEAKING, is_speaking),
    "drum": (DRUM, is_drum),
    "animal": (ANIMAL, which_animal),
    "instrument": (INSTRUMENT, which_instrument),
    "count": (COUNT, how_many_words),
}


def nearest(clips: Sequence[tuple[Sample, str]], wanted: Sequence[tuple[Sample, str]]) -> list[tuple[Sample, str]]:
    """Choose for each wanted clip another one of about its length; none is chosen twice."""
    left, chosen = list(clips), list[tuple[Sample, str]]()
    for clip, _ in wanted:
        length = sample_duration_s(clip)
        best = min(range(len(left)), key=lambda at: abs(sample_duration_s(left[at][0]) - length))
        chosen.append(left.pop(best))
    return chosen


def ask(clips: Sequence[Sample], name: str, chance: random.Random, limit: int, *, alike: bool = False) -> list[Sample]:
    """Ask one question about at most `limit` clips; where it is answered by yes or no, about as many of each.

    With `alike` those are of like length, as far as there are such clips, so that length does not tell the answer.
    """
    wordings, answer = QUESTIONS[name]
    answered = [(clip, found) for clip in clips if (found := answer(clip)) is not None]
    chance.shuffle(answered)
    if {found for _, found in answered} == {"yes", "no"}:
        yes, no = ([pair for pair in answered if pair[1] == word] for word in ("yes", "no"))
        if alike and len(yes) > len(no):
            yes = nearest(yes, no)
        elif alike:
            no = nearest(no, yes)
        answered = [pair for both in zip(yes, no, strict=False) for pair in both]
    return [
        replace(clip, id=f"{name}-{clip.id}", task="qa", prompt=chance.choice(wordings), target=found)
        for clip, found in answered[:limit]
    ]


def describe_speech(clips: Sequence[Sample], chance: random.Random, limit: int) -> list[Sample]:
    """Caption at most `limit` of the clips in which something is said."""
    spoken = [clip for clip in clips if is_speaking(clip) == "yes"]
    chosen = chance.sample(spoken, min(limit, len(spoken)))
    return [replace(clip, id=f"described-{clip.id}", task="audiocaption", target=SPEECH) for clip in chosen]


def main(data: Path, more: Sequence[Path], out: Path) -> None:
    """Write twelve manifests; the same input always gives the same questions."""
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        chance = random.Random(split)
        real = [
            clip for name in ("arctic", "speech", "sounds") for clip in load_manifest(data / f"{name}_{split}.jsonl")
        ]
        clips = real if split == "test" else [*real, *(clip for path in more for clip in load_manifest(path))]
        for name in QUESTIONS:
            # Few clips are sounds: with many spoken ones beside them each of them would stand for one opposite alone.
            # Clips without speech are mostly short, spoken ones long: unless they are chosen to be alike, length tells
            # the answer. (The test sets are older than that.)
            questions = ask(clips, name, chance, 500, alike=split == "train")
            write_manifest(questions, out / f"{name}_{split}.jsonl")
            print(f"{name}_{split}: {len(questions)}")
        if split == "train":
            chance = random.Random("real")
            write_manifest(ask(real, "count", chance, 1500), out / "count_real_train.jsonl")
            write_manifest(describe_speech(real, chance, 500), out / "described_train.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2].split(",")], Path(sys.argv[3]))
