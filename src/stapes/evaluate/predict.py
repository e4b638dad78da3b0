"""Let a model answer all samples of manifests, and score what it said; a killed evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..data.prompts import refuse_audio_token, test_instruction
from ..data.sample import Sample, load_manifest, load_sample_audio, probe_sample, sample_duration_s
from ..environment import environment
from ..errors import ManifestError, ModelFolderError, StapesError
from ..files import list_stamps, read_json, to_json, write_json, write_text
from ..inference import AudioLM, load
from .nota import NotaProtocol
from .score import Prediction, check_same_samples, compare, read_predictions, score_predictions

PREDICTIONS_FILE = "predictions.jsonl"
SCORES_FILE = "scores.json"
SETTINGS_FILE = "settings.json"
"""What the predictions of a folder depend on, so that those of other settings are never mixed in."""

# Of `scores.json`: how the predictions came about. `seconds` are of the process that finished them; what an interrupted
# one had answered before (`num_resumed`) is not in it.
_CIRCUMSTANCES = ("batch_size", "seconds", "num_resumed", "environment")


def predict(
    audio_lm: AudioLM, samples: Sequence[Sample], *, batch_size: int, max_new_tokens: int, out_path: Path
) -> list[Prediction]:
    """Answer all samples, greedily.

    Samples of like length share a batch, the longest first, so that memory runs out at once or not at all. Each batch
    is appended to `OUT.partial` as soon as it is answered; `OUT` itself appears when all are.

    Args:
        audio_lm: the model.
        samples: with ids of their own; see `load_samples`.
        batch_size: samples answered at once; the texts do not depend on it.
        max_new_tokens: at most this many tokens of answer.
        out_path: the `predictions.jsonl` to write. What it or its `.partial` holds already is kept.

    Returns:
        A prediction for each sample, in their order, as in the file.

    Raises:
        AudioError: if audio cannot be read; the message names manifest line and file.
        ManifestError: if a question holds the audio token.
        StapesError: if `out_path` holds the predictions of other samples.
    """
    done = {prediction["id"]: prediction for prediction in _read_done(out_path)}
    strangers = sorted(done.keys() - {sample.id for sample in samples})
    if strangers:
        raise StapesError(
            f"{out_path}: holds {len(strangers)} predictions of other samples, e.g. `{strangers[0]}`; choose another "
            "`--out` or delete it"
        )
    pending = [sample for sample in samples if sample.id not in done]
    for sample in pending:
        what = f"{sample.where}: sample `{sample.id}`: the question"
        refuse_audio_token(test_instruction(sample), audio_lm.processor.audio_token, what, ManifestError)
    pending.sort(key=sample_duration_s, reverse=True)
    with _partial(out_path).open("a", encoding="utf-8") as stream, _progress_bar() as bar:
        shown = bar.add_task("answering", total=len(samples), completed=len(done))
        for start in range(0, len(pending), batch_size):
            batch = pending[start : start + batch_size]
            for prediction in _answer(audio_lm, batch, max_new_tokens):
                stream.write(_to_line(prediction))
                done[prediction["id"]] = prediction
            # Out of this process, so that a kill loses the batch under way and no other.
            stream.flush()
            bar.advance(shown, len(batch))
    predictions = [done[sample.id] for sample in samples]
    write_text(out_path, "".join(map(_to_line, predictions)))
    _partial(out_path).unlink()
    return predictions


def evaluate_model(
    model_dir: Path,
    manifests: Sequence[Path],
    out_dir: Path,
    *,
    batch_size: int,
    max_new_tokens: int,
    limit: int | None,
    against: Path | None,
    seed: int,
) -> dict[str, Any]:
    """Score a model folder on manifests; writes `predictions.jsonl` and `scores.json`.

    A folder that holds an evaluation of the same model, manifests, `limit` and `max_new_tokens` is made use of: what is
    answered is not asked again, and a finished one is only scored anew (another `seed`, another `against`). One of
    other settings is refused.

    Args:
        model_dir: the model folder; its name is the variant's.
        manifests: what to answer.
        out_dir: where the files go.
        batch_size: samples answered at once.
        max_new_tokens: at most this many tokens of answer.
        limit: the first N samples of each manifest, None for all.
        against: the folder of a finished evaluation on the same samples, to compare with.
        seed: of the resampling behind intervals and p-values.

    Returns:
        What `scores.json` holds (docs/design.md, section 5).

    Raises:
        StapesError: if manifests, audio, model or an earlier evaluation stand in the way.
    """
    samples = load_samples(manifests, limit)
    baseline = _load_baseline(against, samples) if against else None
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in manifests]
    model = _digest_folder(model_dir)
    _claim(out_dir, {"model": model, "manifests": contents, "limit": limit, "max_new_tokens": max_new_tokens})
    if (out_dir / SCORES_FILE).exists():
        predictions = read_predictions(out_dir / PREDICTIONS_FILE)
        earlier = read_json(out_dir / SCORES_FILE)
        circumstances = {key: earlier[key] for key in _CIRCUMSTANCES}
    else:
        predictions, circumstances = _predict_folder(model_dir, samples, out_dir, batch_size, max_new_tokens)
    scores = {
        "variant": model_dir.resolve().name,
        "manifests": [str(path) for path in manifests],
        "limit": limit,
        "n": len(predictions),
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "tasks": score_predictions(predictions, seed=seed),
        **({"paired": compare(predictions, baseline[1], against=baseline[0], seed=seed)} if baseline else {}),
        **circumstances,
    }
    write_json(out_dir / SCORES_FILE, scores)
    return scores


def score_published(out_dir: Path, protocol: NotaProtocol, against: Path | None) -> dict[str, Any]:
    """Score a finished evaluation anew as published figures are; writes `scores_PROTOCOL.json` beside `scores.json`.

    Args:
        out_dir: the folder of the evaluation.
        protocol: which published scoring.
        against: the folder of another one on the same samples, to compare with.

    Returns:
        What the file holds: as `scores.json`, with `protocol`, and with each metric the line the evaluator prints.

    Raises:
        StapesError: if the evaluation is not finished, or the two are not about the same samples.
    """
    scores = read_json(out_dir / SCORES_FILE) | {"protocol": protocol}
    predictions, seed = read_predictions(out_dir / PREDICTIONS_FILE), scores["seed"]
    scores["tasks"] = score_predictions(predictions, seed=seed, protocol=protocol)
    scores.pop("paired", None)
    if against is not None:
        others, name = read_predictions(against / PREDICTIONS_FILE), read_json(against / SCORES_FILE)["variant"]
        scores["paired"] = compare(predictions, others, against=name, seed=seed, protocol=protocol)
    write_json(out_dir / f"scores_{protocol}.json", scores)
    return scores


def load_samples(manifests: Sequence[Path], limit: int | None) -> list[Sample]:
    """Read the first `limit` samples of each manifest, or all.

    Raises:
        ManifestError: if a manifest cannot be read or two samples have one id, by which predictions are compared.
    """
    samples = [sample for manifest in manifests for sample in load_manifest(manifest)[:limit]]
    seen: dict[str, Sample] = {}
    for sample in samples:
        first = seen.setdefault(sample.id, sample)
        if first is not sample:
            raise ManifestError(
                f"{sample.where}: id `{sample.id}` is taken by {first.where}; predictions are told apart by id: give "
                "each sample one of its own, and name a manifest once"
            )
    return samples


def _predict_folder(
    model_dir: Path, samples: Sequence[Sample], out_dir: Path, batch_size: int, max_new_tokens: int
) -> tuple[list[Prediction], dict[str, Any]]:
    """Load a model and let it answer; return the predictions and how they came about (`_CIRCUMSTANCES`)."""
    out_path = out_dir / PREDICTIONS_FILE
    done = {prediction["id"] for prediction in _read_done(out_path)}
    for sample in samples:
        if sample.id not in done:
            probe_sample(sample)  # before the minutes that a model may take
    audio_lm = load(model_dir)
    started = time.monotonic()
    predictions = predict(audio_lm, samples, batch_size=batch_size, max_new_tokens=max_new_tokens, out_path=out_path)
    dtype = str(audio_lm.model.dtype).removeprefix("torch.")
    return predictions, {
        "batch_size": batch_size,
        "seconds": round(time.monotonic() - started, 2),
        "num_resumed": len(done),
        "environment": environment(
            str(audio_lm.model.device), dtype if audio_lm.model.config.int8 is None else f"int8 and {dtype}"
        ),
    }


def _answer(audio_lm: AudioLM, batch: Sequence[Sample], max_new_tokens: int) -> Iterator[Prediction]:
    instructions = [test_instruction(sample) for sample in batch]
    waveforms = [load_sample_audio(sample) for sample in batch]
    answers = audio_lm.answer(waveforms, instructions, max_new_tokens=max_new_tokens)
    for sample, instruction, answer in zip(batch, instructions, answers, strict=True):
        prediction: Prediction = {
            "id": sample.id,
            "task": sample.task,
            "audio": str(sample.audio),
            "prompt": instruction,
            "target": sample.target,
            "text": answer.text,
            "num_tokens": answer.num_tokens,
            "truncated": answer.truncated,
        }
        if sample.references:
            prediction["references"] = list(sample.references)
        yield prediction


def _partial(out_path: Path) -> Path:
    return out_path.with_name(out_path.name + ".partial")


def _read_done(out_path: Path) -> list[Prediction]:
    """Read what is answered already, without a last line that a kill cut off."""
    if out_path.exists():
        return read_predictions(out_path)
    partial = _partial(out_path)
    if not partial.exists():
        return []
    content = partial.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with partial.open("r+b") as stream:
            stream.truncate(whole)
    return read_predictions(partial) if whole else []


def _to_line(prediction: Prediction) -> str:
    return to_json(prediction) + "\n"


def _load_baseline(against: Path, samples: Sequence[Sample]) -> tuple[str, list[Prediction]]:
    """Read what to compare with, and refuse what cannot be compared before the model has run for minutes."""
    name = read_json(against / SCORES_FILE)["variant"]
    others = read_predictions(against / PREDICTIONS_FILE)
    check_same_samples(
        {sample.id: (sample.task, sample.target) for sample in samples},
        {other["id"]: (other["task"], other["target"]) for other in others},
        name,
    )
    return name, others


def _claim(out_dir: Path, settings: dict[str, Any]) -> None:
    """Mark a folder with what its predictions depend on, or refuse one that holds those of other settings."""
    mark = out_dir / SETTINGS_FILE
    if _read_done(out_dir / PREDICTIONS_FILE):
        earlier = read_json(mark) if mark.exists() else {}
        changed = [key for key in settings if key not in earlier or earlier[key] != settings[key]]
        if changed:
            raise StapesError(
                f"{out_dir}: holds an evaluation of another {' and '.join(changed)}; choose another `--out` "
                "or delete it"
            )
    write_json(mark, settings)


def _digest_folder(folder: Path) -> str:
    """Tell a model folder from what it was before something changed it, without reading gigabytes."""
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such model folder")
    return hashlib.sha256(json.dumps(list_stamps(folder)).encode()).hexdigest()


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
