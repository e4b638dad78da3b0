"""Measure stapes-tiny, or another model, against its goals and against Whisper with the same normaliser.

    python benchmarks/stapes_tiny.py DATA QUESTIONS OUT [--model FOLDER] [--whisper openai/whisper-tiny.en …]

DATA holds `{arctic,speech,words,accents,sounds,esc10,orders}_test.jsonl` and `orders_train.jsonl`, QUESTIONS what
`models/stapes-tiny/make_questions.py` wrote. Predictions stay in OUT, so that an interrupted measurement goes on.

Prints and writes to `OUT/figures.json`: word error rates with 95 % intervals by test set, clean and at 20, 10 and 5 dB
SNR (white noise) and at -20 dB of level; exact matches by question beside what the commonest answer in training would
score; how often the main noun of a sound is in its caption, and a field recording's caption is that of its class; and
the share of transcripts twice too long.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from stapes.data.degrade import degrade
from stapes.data.sample import Sample, load_manifest, load_sample_audio
from stapes.defaults import find_model
from stapes.environment import environment
from stapes.evaluate.metrics import exact_matches
from stapes.evaluate.normalize import normalize_english
from stapes.evaluate.predict import evaluate_model
from stapes.evaluate.score import Prediction, read_predictions, score_predictions
from stapes.files import write_json
from stapes.weights import resolve

SPOKEN = ("arctic_test", "speech_test", "words_test", "accents_test")
CONDITIONS: dict[str, dict[str, float]] = {
    "20 dB SNR": {"snr_db": 20},
    "10 dB SNR": {"snr_db": 10},
    "5 dB SNR": {"snr_db": 5},
    "-20 dB level": {"gain_db": -20},
}
# The noun that says what sounds, for each caption of sounds_test; the last word of "deep electronic bass drum".
_VERBS = {"is", "loops", "sweeps", "plays", "makes", "snap", "rings", "flushes"}
_ADJECTIVE_LAST = {"boom", "click", "beep", "chime", "noises", "music"}


def main_noun(caption: str) -> str:
    """Take the noun out of a caption: the word before its verb, or the last word of one without a verb."""
    words = caption.lower().split()
    verb = next((at for at, word in enumerate(words) if at and (word in _VERBS or _is_animal_verb(words, at))), None)
    noun = words[verb - 1] if verb else words[-1]
    # "a drum beat loops" and "a drum roll plays" are about a drum.
    return "drum" if noun in ("beat", "roll") else noun.removesuffix("s")


def _is_animal_verb(words: Sequence[str], at: int) -> bool:
    """Tell whether a word is the verb of "a camel groans": an s-word behind article and noun."""
    return at == 2 and words[at].endswith("s") and words[at] not in _ADJECTIVE_LAST


def score(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the first metric of the predictions' one task: WER for speech, CIDEr-D, or exact match."""
    (task,) = score_predictions(predictions, seed=0).values()
    name, metric = next(iter(task["metrics"].items()))
    return {"n": task["n"], "metric": name, **{key: metric[key] for key in ("value", "low", "high")}}


def too_long(predictions: Sequence[Prediction]) -> float:
    """Return the share of transcripts of more than twice as many words as were said, in %."""
    long = [len(p["text"].split()) > 2 * len(p["target"].split()) for p in predictions]
    return round(100 * sum(long) / len(long), 2)


def by_slot(predictions: Sequence[Prediction], training: Sequence[Sample]) -> dict[str, Any]:
    """Return exact matches by question, and what the commonest answer in training would score."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in training:
        answers[sample.prompt or ""][sample.target] += 1
    slots: dict[str, Any] = {}
    for prompt in sorted({p["prompt"] for p in predictions}):
        asked = [p for p in predictions if p["prompt"] == prompt]
        guess = answers[prompt].most_common(1)[0][0]
        guessed = exact_matches([p["target"] for p in asked], [guess] * len(asked))
        slots[prompt] = {**score(asked), "without_audio": round(guessed.value, 2)}
    return slots


def whisper(name: str, samples: Sequence[Sample]) -> float:
    """Return the WER, in %, of a Whisper that decodes greedily, 30 s padded, on its own."""
    folder = resolve(name)
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    english = {} if name.endswith(".en") else {"language": "en", "task": "transcribe"}
    references, hypotheses = [], []
    for sample in samples:
        features = processor(load_sample_audio(sample), sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            ids = model.generate(features, num_beams=1, do_sample=False, max_new_tokens=120, **english)
        references.append(normalize_english(sample.target))
        hypotheses.append(normalize_english(processor.batch_decode(ids, skip_special_tokens=True)[0]))
    return round(100 * float(jiwer.wer(references, hypotheses)), 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--whisper", nargs="*", default=[])
    parser.add_argument("--no-conditions", action="store_true")
    asked = parser.parse_args()
    model = find_model(asked.model)

    def answers(manifest: Path, name: str) -> list[Prediction]:
        folder = asked.out / name
        folder.mkdir(parents=True, exist_ok=True)
        evaluate_model(model, [manifest], folder, batch_size=8, max_new_tokens=96, limit=None, against=None, seed=0)
        return read_predictions(folder / "predictions.jsonl")

    figures: dict[str, Any] = {"model": str(model.name), "environment": environment(), "sets": {}, "conditions": {}}
    for name in SPOKEN:
        said = answers(asked.data / f"{name}.jsonl", name)
        figures["sets"][name] = {**score(said), "too_long": too_long(said)}
    sounds = answers(asked.data / "sounds_test.jsonl", "sounds_test")
    named = [main_noun(p["target"]) in p["text"].lower() for p in sounds]
    figures["sets"]["sounds_test"] = {**score(sounds), "main_noun": round(100 * sum(named) / len(named), 2)}
    field = answers(asked.data / "esc10_test.jsonl", "esc10_test")
    classed = exact_matches([p["target"] for p in field], [p["text"] for p in field])
    figures["sets"]["esc10_test"] = {**score(field), "caption_of_class": round(classed.value, 2)}
    orders = answers(asked.data / "orders_test.jsonl", "orders_test")
    figures["sets"]["orders_test"] = score(orders)
    figures["orders_by_slot"] = by_slot(orders, load_manifest(asked.data / "orders_train.jsonl"))
    for manifest in sorted(asked.questions.glob("*_test.jsonl")):
        figures["sets"][f"questions/{manifest.stem}"] = score(answers(manifest, manifest.stem))
    for condition, change in {} if asked.no_conditions else CONDITIONS.items():
        folder = asked.out / condition.replace(" ", "_")
        figures["conditions"][condition] = {}
        for name in SPOKEN[:2]:
            made = folder / f"{name}.jsonl"
            if not made.exists():
                degrade(asked.data / f"{name}.jsonl", folder, **change)
            figures["conditions"][condition][name] = score(answers(made, f"{folder.name}/answers_{name}"))
    for name in asked.whisper:
        figures[name] = {spoken: whisper(name, load_manifest(asked.data / f"{spoken}.jsonl")) for spoken in SPOKEN}
    write_json(asked.out / "figures.json", figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
