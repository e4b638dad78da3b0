"""Under which circumstances numbers of one table came about, where they differ, and which of them compare at all."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .collect import Collected, Variant

Source = Literal["scores", "bench"]

_MADE_UP_CLIPS = ("speech-shaped noise", "white noise")
_PROTOCOLS = {"stapes": "stapes, a whole answer", "nota": "nota, features are made beforehand and not timed"}
_SMALL_N = 20
_MEMORY_KINDS = {"rss": "resident set of the process (RSS)", "cuda": "PyTorch's CUDA allocator"}


@dataclass(frozen=True)
class Circumstances:
    """What stands under a table.

    Attributes:
        facts: name and value; a value that differs names the variants it is of.
        warnings: sentences about what differs and should not, or is too little.
        commands: that measure the same again.
    """

    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class _Fact:
    """One circumstance: its name, how it is read, and whether variants of one table should have it in common."""

    name: str
    read: Callable[[dict[str, Any]], Any]
    is_common: bool = True


def describe_scores(collected: Collected) -> Circumstances | None:
    """Describe how the scores came about, None if there are none."""
    variants = [variant for variant in collected.variants if variant.scores]
    if not variants:
        return None
    facts = [
        _Fact("samples", _num_samples),
        _Fact("manifests", lambda scores: ", ".join(map(shorten, scores.get("manifests", ()))), is_common=False),
        _Fact("samples taken of each manifest", lambda scores: scores.get("limit")),
        _Fact("limit of an answer", lambda scores: _unit(scores.get("max_new_tokens"), "tokens")),
        _Fact("batch size", lambda scores: scores.get("batch_size"), is_common=False),
        _Fact("references of a caption", _num_references),
        _Fact("seed of the intervals", lambda scores: scores.get("seed")),
        _Fact("answering took", _answering_time, is_common=False),
    ]
    common, warnings = _compare(variants, "scores", facts)
    cut: dict[str, list[str]] = {}
    for variant in variants:
        if variant.predictions:
            cut.setdefault(str(_num_truncated(variant)), []).append(variant.label)
    common.append(("answers cut off at that limit", _text(cut)))
    warnings += _different_samples(variants) + _few_samples(variants)
    return Circumstances(_present(common), tuple(warnings), tuple(_eval_commands(variants)))


def describe_bench(collected: Collected) -> Circumstances | None:
    """Describe how latency and memory were measured, None if they were not."""
    variants = [variant for variant in collected.variants if variant.bench]
    if not variants:
        return None
    facts = [
        _Fact("protocol", lambda bench: _PROTOCOLS.get(bench.get("protocol", ""), bench.get("protocol"))),
        _Fact("clip", _clip),
        _Fact("batch size", lambda bench: bench.get("batch_size")),
        _Fact("length of the answer", lambda bench: _unit(bench.get("new_tokens"), "tokens")),
        _Fact("runs that count", lambda bench: bench.get("repeats")),
        _Fact("warm-up runs", lambda bench: bench.get("warmup")),
        _Fact("prompt", lambda bench: _unit(bench.get("num_prompt_tokens"), "tokens"), is_common=False),
        _Fact("audio in the prompt", lambda bench: _unit(bench.get("num_audio_tokens"), "tokens"), is_common=False),
        _Fact("kind of memory", lambda bench: _MEMORY_KINDS.get(bench.get("memory_bytes", {}).get("kind"))),
        _Fact("seed of the clip", lambda bench: bench.get("seed")),
    ]
    common, warnings = _compare(variants, "bench", facts)
    together = [v.label for v in variants if (v.bench or {}).get("memory_bytes", {}).get("run_peak_includes_load")]
    if together:
        warnings.append(
            f"The system could not reset the peak of the process: the peak at run includes loading "
            f"({', '.join(together)})."
        )
    reduced = [v.label for v in variants if (v.bench or {}).get("nota", {}).get("reduced")]
    if reduced:
        warnings.append(f"Fewer runs than the nota protocol prescribes ({', '.join(reduced)}).")
    searching = [v.label for v in variants if (v.bench or {}).get("leaves_out_transcript_search")]
    if searching:
        warnings.append(
            "TTFT, RTF and latency leave out the search for a transcript before the first token "
            f"({', '.join(searching)})."
        )
    if not is_comparable(variants, "bench"):
        warnings.append("So latency and peak memory do not compare: no best value is marked, no Pareto front drawn.")
    return Circumstances(_present(common), tuple(warnings), tuple(_bench_commands(variants)))


def is_comparable(variants: Sequence[Variant], source: Source, task: str | None = None) -> bool:
    """Tell whether a best value may be named among variants that all have one.

    Scores compare on the same samples, latency and peaks of the same clip on the same device with the same threads.
    """
    if source == "scores":
        # Without predictions, one set of samples is told from another by its size only.
        known = all(variant.predictions for variant in variants)
        return len({_samples(variant, task) if known else _num(variant, task) for variant in variants}) <= 1
    return len({_bench_key(variant.bench or {}) for variant in variants}) <= 1


def environment_facts(environments: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    """Describe device, threads, versions, commit and date of labelled environments; equal values stand once."""
    return _present([(fact.name, _text(_groups(environments, fact))) for fact in _environment_facts(environments)])


def shorten(path: str | Path) -> str:
    """Write a path below the current folder as relative to it: a page need not tell whose disk it was made on."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _num_references(scores: dict[str, Any]) -> str | None:
    metrics = scores.get("tasks", {}).get("audiocaption", {}).get("metrics", {})
    count = metrics.get("cider_d", {}).get("references")
    return f"{count[0]} to {count[1]}" if isinstance(count, list) else None if count is None else str(count)


def _compare(
    variants: Sequence[Variant], source: Source, facts: Sequence[_Fact]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return all facts, those of the environment included, and a warning for each that should be common and is not."""
    documents = [(variant.label, getattr(variant, source)) for variant in variants]
    environments = [(label, document.get("environment") or {}) for label, document in documents]
    pairs = [(fact, _groups(documents, fact)) for fact in facts]
    pairs += [(fact, _groups(environments, fact)) for fact in _environment_facts(environments)]
    warnings = [
        f"Different {fact.name}: {_text(groups)}." for fact, groups in pairs if fact.is_common and len(groups) > 1
    ]
    return [(fact.name, _text(groups)) for fact, groups in pairs], warnings


def _environment_facts(environments: Sequence[tuple[str, dict[str, Any]]]) -> list[_Fact]:
    packages = list(dict.fromkeys(name for _, found in environments for name in found.get("versions") or {}))
    return [
        _Fact("device", _device),
        _Fact("dtype", lambda found: found.get("dtype"), is_common=False),
        _Fact("threads", lambda found: found.get("num_threads")),
        _Fact("cores", lambda found: found.get("num_cores")),
        _Fact("memory of the machine", lambda found: _gib(found.get("memory_bytes"))),
        _Fact("system", lambda found: found.get("os")),
        _Fact("Python", lambda found: found.get("python")),
        *[_Fact(name, lambda found, name=name: (found.get("versions") or {}).get(name)) for name in packages],
        _Fact("commit", lambda found: found.get("git_sha")),
        _Fact("date", lambda found: str(found.get("date", ""))[:10], is_common=False),
    ]


def _groups(documents: Sequence[tuple[str, dict[str, Any]]], fact: _Fact) -> dict[str, list[str]]:
    """Sort labels by what `fact` says of them."""
    groups: dict[str, list[str]] = {}
    for label, document in documents:
        value = fact.read(document)
        groups.setdefault("" if value is None else str(value), []).append(label)
    return groups


def _text(groups: dict[str, list[str]]) -> str:
    if len(groups) < 2:
        return next(iter(groups), "")
    known = [label for labels in groups.values() for label in labels]
    return "; ".join(f"{value or 'not told'} ({', '.join(_fold(labels, known))})" for value, labels in groups.items())


def _fold(labels: list[str], known: list[str]) -> list[str]:
    """Put a run's name in place of its variants where all that are `known` are among `labels`."""
    folded: dict[str, None] = {}
    for label in labels:
        run = label.rpartition("/")[0]
        whole = run and all(other in labels for other in known if other.rpartition("/")[0] == run)
        folded[run if whole else label] = None
    return list(folded)


def _present(facts: Sequence[tuple[str, str]]) -> Any:
    return tuple((name, value) for name, value in facts if value)


def _different_samples(variants: Sequence[Variant]) -> list[str]:
    tasks = dict.fromkeys(task for variant in variants for task in (variant.scores or {})["tasks"])
    wrong = []
    for task in tasks:
        some = [variant for variant in variants if task in (variant.scores or {})["tasks"]]
        if not is_comparable(some, "scores", task):
            wrong.append(
                f"Variants were scored on different {task} samples: their scores do not compare, and no best value is "
                "marked."
            )
    return wrong


def _few_samples(variants: Sequence[Variant]) -> list[str]:
    counts = {task: part["n"] for variant in variants for task, part in (variant.scores or {})["tasks"].items()}
    few = [f"{number} {task}" for task, number in counts.items() if number < _SMALL_N]
    return [f"Only {' and '.join(few)} samples: below some {_SMALL_N}, intervals are too narrow."] if few else []


def _samples(variant: Variant, task: str | None) -> frozenset[tuple[str, str]]:
    return frozenset((line["id"], line["target"]) for line in variant.predictions if line["task"] == task)


def _num(variant: Variant, task: str | None) -> int:
    return (variant.scores or {})["tasks"].get(task, {}).get("n", 0)


def _bench_key(bench: dict[str, Any]) -> tuple[Any, ...]:
    environment = bench.get("environment") or {}
    return (
        *(environment.get(key) for key in ("device", "device_name", "num_threads")),
        *(bench.get(key) for key in ("protocol", "audio", "audio_s", "batch_size", "new_tokens")),
        bench.get("memory_bytes", {}).get("kind"),
    )


def _num_samples(scores: dict[str, Any]) -> str:
    parts = ", ".join(f"{part['n']} {task}" for task, part in scores["tasks"].items())
    return f"n = {scores.get('n')} ({parts})"


def _num_truncated(variant: Variant) -> int:
    return sum(bool(line["truncated"]) for line in variant.predictions)


def _eval_commands(variants: Sequence[Variant]) -> list[str]:
    commands = []
    for variant in variants:
        scores = variant.scores or {}
        if not variant.folder.is_dir() or not scores.get("manifests"):
            continue
        words = ["stapes", "eval", shorten(variant.folder)]
        for manifest in scores["manifests"]:
            words += ["--manifest", shorten(manifest)]
        for key in ("batch_size", "max_new_tokens", "limit", "seed"):
            words += [f"--{key.replace('_', '-')}", str(scores[key])] if scores.get(key) is not None else []
        if "paired" in scores and (baseline := _eval_folder(variant, scores["paired"]["against"])).is_dir():
            words += ["--against", shorten(baseline)]
        commands.append(shlex.join([*words, "--out", _new_folder(variant)]))
    return commands


def _new_folder(variant: Variant) -> str:
    """Name a folder below `new` for each variant; labels begin with paths where runs are called the same."""
    path = Path(shorten(variant.label))
    return str(Path("new", *({"..": "up", path.anchor: "root"}.get(part, part) for part in path.parts)))


def _eval_folder(variant: Variant, name: str) -> Path:
    return variant.folder.parent / "eval" / name


def _bench_commands(variants: Sequence[Variant]) -> list[str]:
    """Write one command for all variants of a run that were measured alike."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for variant in variants:
        if variant.bench and variant.folder.is_dir():
            groups.setdefault((variant.run, *_bench_options(variant.bench)), []).append(shorten(variant.folder))
    return [shlex.join(["stapes", "bench", *folders, *key[1:]]) for key, folders in groups.items()]


def _bench_options(bench: dict[str, Any]) -> list[str]:
    environment = bench.get("environment") or {}
    if bench.get("protocol") == "nota":
        names = ["warmup", "repeats"]
        options = ["--protocol", "nota"]
    else:
        names = ["new_tokens", "warmup", "repeats"]
        made_up = bench.get("audio") in _MADE_UP_CLIPS
        options = (
            ["--audio-s", f"{bench.get('audio_s', 0):g}"] if made_up else ["--audio", shorten(str(bench.get("audio")))]
        )
    for name in (*names, "seed"):
        options += [f"--{name.replace('_', '-')}", str(bench.get(name))]
    if environment.get("device") == "cpu" and environment.get("num_threads"):
        options += ["--threads", str(environment["num_threads"])]
    return [*options, "--device", str(environment.get("device", "cpu"))]


def _device(environment: dict[str, Any]) -> str | None:
    name, device = environment.get("device_name"), environment.get("device")
    return f"{device} ({name})" if device and name and name != device else device


def _clip(bench: dict[str, Any]) -> str:
    name = str(bench.get("audio", "audio"))
    return f"{_unit(bench.get('audio_s'), 's')} of {name if name in _MADE_UP_CLIPS else shorten(name)}"


def _answering_time(scores: dict[str, Any]) -> str | None:
    took = _unit(scores.get("seconds"), "s")
    resumed = scores.get("num_resumed")
    return f"{took} without {resumed} answers from before an interruption" if took and resumed else took


def _unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:g} {unit}"


def _gib(num_bytes: int | None) -> str | None:
    return None if num_bytes is None else f"{num_bytes / 2**30:.1f} GiB"
