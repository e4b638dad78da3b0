"""What a recipe comes down to: a list of steps, each with a fingerprint of all it is made from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from ..defaults import find_model
from ..errors import ModelFolderError, RecipeError, StapesError
from ..files import list_stamps, write_json
from ..recipe import CTCCompressor, MergeLora, Model, Quantize, Recipe, StackedMLP, Stage, WindowedQFormer

if TYPE_CHECKING:
    from ..model import WordList


_NOTES = {"step.json", "trained.json", "losses.jsonl"}
"""What a run writes beside a model."""

_BESIDE = {".md", ".csv", ".py"}
"""What its authors put beside a model: cards, lists and scripts."""


@dataclass(frozen=True)
class Step:
    """One box of a run.

    Attributes:
        name: its folder inside the run folder, e.g. `tune` or `eval/tune`.
        fingerprint: changes when anything it is made from does.
        make: fills a working folder and returns what goes into `step.json`.
        everywhere: all processes of a distributed run take part (training); else the first alone.
        resumable: a working folder left by an interruption is worth keeping.
    """

    name: str
    fingerprint: str
    make: Callable[[Path], dict[str, Any]]
    everywhere: bool = False
    resumable: bool = False


def plan_steps(recipe: Recipe, folder: Path) -> list[Step]:
    """List the steps of a recipe in order; small files that they are made from are read, large ones looked at."""
    manifests = sorted({path for stage in recipe.train.values() for path in (*stage.data, *stage.valid)})
    if recipe.evaluate:
        manifests = sorted({*manifests, *recipe.evaluate.data})
    contents = {str(path): _digest_file(path) for path in manifests}
    steps = [Step("data_check", _digest("data_check", contents), lambda work: _check_data(manifests, work))]

    variants: dict[str, str] = {}
    if recipe.start_from is None:
        local = _digest_parts(recipe.parts)
        previous, mark = None, _digest("model", recipe.parts.model_dump(mode="json"), recipe.seed, *local)
    else:
        base = find_model(recipe.start_from)
        previous, mark = "base", _digest("base", {path.name: _digest_file(path) for path in model_files(base)})
        steps.append(Step("base", mark, lambda work: _copy_model(base, work)))
        variants["base"] = mark
        if recipe.train:  # what is only compressed has no use for a seed
            mark = _digest(mark, recipe.seed)
    for name, stage in recipe.train.items():
        data = [contents[str(path)] for path in (*stage.data, *stage.valid)]
        mark = _digest(mark, name, stage.model_dump(mode="json"), data, *_stamp_recordings(stage))
        make = _stage_maker(recipe, name, folder / previous if previous else None)
        steps.append(Step(name, mark, make, everywhere=True, resumable=True))
        previous = name
    assert previous is not None
    variants[previous] = mark
    for compress in recipe.compress:
        mark = _digest(mark, compress.model_dump(mode="json"))
        steps.append(Step(compress.kind, mark, _compress_maker(compress, folder / previous)))
        previous = compress.kind
        variants[previous] = mark

    baseline = next(iter(variants))
    for variant, mark in variants.items():
        if recipe.evaluate:
            data = [contents[str(path)] for path in recipe.evaluate.data]
            marks = _digest(mark, variants[baseline], recipe.evaluate.model_dump(mode="json"), data, recipe.seed)
            make = _evaluate_maker(recipe, folder, variant, None if variant == baseline else baseline)
            steps.append(Step(f"eval/{variant}", marks, make, resumable=True))
    for variant, mark in variants.items():
        if recipe.bench:
            marks = _digest(mark, recipe.bench.model_dump(mode="json"), recipe.seed)
            steps.append(Step(f"bench/{variant}", marks, _bench_maker(recipe, folder / variant)))
    marks = _digest(*[step.fingerprint for step in steps], recipe.report.model_dump(mode="json"))
    steps.append(Step("report", marks, lambda work: _write_report(recipe, folder, work)))
    return steps


def _check_data(manifests: list[Path], work: Path) -> dict[str, Any]:
    from ..data.check import check_manifests

    report = check_manifests(manifests)
    write_json(work / "summary.json", report.to_dict())
    if report.errors:
        shown = "\n".join(str(problem) for problem in report.errors[:5])
        raise StapesError(
            f"{len(report.errors)} samples cannot be used, the first:\n{shown}\n"
            "`stapes data check MANIFEST --drop-bad CLEAN.jsonl` writes a clean manifest"
        )
    return {"samples": report.num_samples, "warnings": len(report.warnings)}


def model_files(folder: Path) -> list[Path]:
    """List the files of a model folder, without what a run and its authors note beside them.

    Raises:
        ModelFolderError: if there is no model.
    """
    if not (folder / "config.json").exists():
        raise ModelFolderError(f"{folder}: no such model folder")
    # Code belongs to a model whose configuration names it, and to no other.
    beside = _BESIDE - {".py"} if "auto_map" in (folder / "config.json").read_text(encoding="utf-8") else _BESIDE
    return sorted(
        path for path in folder.iterdir() if path.is_file() and path.name not in _NOTES and path.suffix not in beside
    )


def _copy_model(base: Path, work: Path) -> dict[str, Any]:
    """Keep the model that is gone on from beside what is made of it: it is measured like the others."""
    work.mkdir(parents=True, exist_ok=True)
    for path in model_files(base):
        shutil.copyfile(path, work / path.name)
    return {"start_from": base.name}


def _stage_maker(recipe: Recipe, name: str, previous: Path | None) -> Callable[[Path], dict[str, Any]]:
    def make(work: Path) -> dict[str, Any]:
        from ..assembly import build, load_model
        from ..train.stage import train_stage
        from ..weights import allow_code, cache_folder

        if previous is None:
            if recipe.parts.trust_remote_code:
                allow_code(recipe.parts.llm)
            model, processor = build(**_build_arguments(recipe.parts), seed=recipe.seed)
            processor.words = _read_words(recipe.parts)
        else:
            model, processor = load_model(previous)
        work.mkdir(parents=True, exist_ok=True)
        cache = cache_folder() / "features"
        stage = recipe.train[name]
        return asdict(train_stage(model, processor, stage, name=name, seed=recipe.seed, folder=work, cache=cache))

    return make


def _read_words(model: Model) -> WordList | None:
    connector = model.connector
    if not isinstance(connector, CTCCompressor) or connector.words is None:
        return None
    from ..model import WordList

    try:
        return WordList.read(connector.words)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.connector.words: {error}") from error


def _build_arguments(model: Model) -> dict[str, Any]:
    from ..model import ConnectorConfig

    match model.connector:
        case WindowedQFormer() as section:
            connector = ConnectorConfig(
                kind="windowed_qformer",
                frames_per_window=section.frames_per_window,
                queries_per_window=section.queries_per_window,
                tail=section.tail,
                hidden_size=section.hidden_size,
                num_hidden_layers=section.num_layers,
                num_attention_heads=section.num_heads,
                intermediate_size=section.intermediate_size,
                dropout=section.dropout,
            )
        case CTCCompressor() as section:
            connector = ConnectorConfig(
                kind="ctc_compressor",
                frames_per_window=section.frames_per_slot,
                ctc_stride=section.stride,
                ctc_merges=section.merges,
                ctc_sharpness=section.sharpness,
                ctc_spelling=section.spelling,
                ctc_letters=section.letters,
                ctc_phones=section.phones,
                ctc_weight=section.ctc_weight,
                sound_layer=section.sound_layer,
                hidden_size=section.hidden_size,
                num_hidden_layers=section.num_layers,
                num_attention_heads=section.num_heads,
                intermediate_size=section.intermediate_size,
                dropout=section.dropout,
            )
        case StackedMLP() as section:
            connector = ConnectorConfig(
                kind="stacked_mlp", frames_per_window=section.stack, hidden_size=section.hidden_size
            )
        case _:
            assert_never(model.connector)
    return {
        "speech_encoder": model.speech_encoder,
        "llm": model.llm,
        "sound_encoder": model.sound_encoder,
        "connector": connector,
        "prompt": model.prompt,
        "audio_token": model.audio_token,
        "pad_audio_to_s": model.pad_audio_to_s,
    }


def _compress_maker(step: MergeLora | Quantize, source: Path) -> Callable[[Path], dict[str, Any]]:
    def make(work: Path) -> dict[str, Any]:
        from ..compress import merge_lora, quantize

        match step:
            case MergeLora():
                return merge_lora(source, work)
            case Quantize():
                return quantize(source, work, bits=step.bits, skip=step.skip)
            case _:
                assert_never(step)

    return make


def _evaluate_maker(
    recipe: Recipe, folder: Path, variant: str, baseline: str | None
) -> Callable[[Path], dict[str, Any]]:
    def make(work: Path) -> dict[str, Any]:
        from ..evaluate.predict import evaluate_model

        section = recipe.evaluate
        assert section is not None
        scores = evaluate_model(
            folder / variant,
            list(section.data),
            work,
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
            limit=section.limit,
            against=folder / "eval" / baseline if baseline else None,
            seed=recipe.seed,
        )
        return {"n": scores["n"]}

    return make


def _bench_maker(recipe: Recipe, model: Path) -> Callable[[Path], dict[str, Any]]:
    def make(work: Path) -> dict[str, Any]:
        from ..bench import BenchSettings, bench_model

        assert recipe.bench is not None
        settings = BenchSettings(**recipe.bench.model_dump(), seed=recipe.seed)
        result = bench_model(model, settings, out_path=work / "bench.json")
        return {"repeats": result["repeats"]}

    return make


def _write_report(recipe: Recipe, folder: Path, work: Path) -> dict[str, Any]:
    from ..report import build_report

    build_report([folder], work, num_samples=recipe.report.samples, seed=recipe.seed)
    return {"pages": ["report.html", "report.md"]}


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _digest_parts(model: Model) -> list[Any]:
    """Tell apart what files of this machine a model is built from, beside the settings that name them."""
    found: list[Any] = []
    words = getattr(model.connector, "words", None)
    if words is not None and words.is_file():  # one that is missing is named when it is read
        found.append(_digest_file(words))
    for part in (model.speech_encoder, model.llm, model.sound_encoder):
        folder = None if part is None else Path(part).expanduser()  # as `weights.resolve` reads names
        found += list_stamps(folder) if folder is not None and folder.is_dir() else []
    return found


def _stamp_recordings(stage: Stage) -> list[Any]:
    """Tell apart the recordings that a stage's augmentation draws from."""
    sections = (stage.augment.noise, stage.augment.reverb) if stage.augment else ()
    folders = [section.folder for section in sections if section is not None and section.folder is not None]
    return [stamp for folder in folders for stamp in list_stamps(folder)]


def _digest_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise StapesError(f"{path}: no such manifest") from None
