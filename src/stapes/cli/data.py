"""`stapes data check`, `stats`, `prepare`, `import`, `synth`, `degrade`: look at data, get it, make it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ..data.check import CheckReport, Problem

_Manifests = Annotated[list[Path], typer.Argument(help="Manifests: JSON Lines, or SALMONN's JSON.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    verbs = typer.Typer(help="Check, picture, prepare, import, synthesize and degrade data.", no_args_is_help=True)
    verbs.command()(check)
    verbs.command()(stats)
    verbs.command()(prepare)
    verbs.command("import")(import_)
    verbs.command()(synth)
    verbs.command()(degrade)
    app.add_typer(verbs, name="data")


def check(
    manifests: _Manifests,
    drop_bad: Annotated[
        Path | None,
        typer.Option(
            help="Write a manifest without the bad samples here: a file, or a folder if several are checked.",
            metavar="OUT",
        ),
    ] = None,
    min_s: Annotated[float, typer.Option(min=0, help="Shorter audio is an error.")] = 0.1,
    max_s: Annotated[
        float | None, typer.Option(min=0, help="Longer audio is an error; without it, more than 30 s is a warning.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings for errors.")] = False,
    as_json: _Json = False,
) -> None:
    """Find broken lines, bad audio and empty texts; exit 1 if there are any.

    Errors: broken lines; audio that is missing, unreadable, empty, cut off, silent, too short, too long or full of
    NaN, or whose length is not what the manifest says; ids twice; empty targets. Warnings: clipped audio, and audio
    longer than 30 s where no `--max-s` is given.

    Example: `stapes data check data/*.jsonl`, or `stapes data check raw.jsonl --drop-bad clean.jsonl`
    """
    from ..data.check import check_manifests
    from ..environment import environment
    from .printing import print_json

    targets = _clean_paths(manifests, drop_bad) if drop_bad else []
    with _progress_bar("decoding") as progress:
        report = check_manifests(manifests, min_s=min_s, max_s=max_s, progress=progress)
    bad = report.problems if strict else report.errors
    if as_json:
        print_json(report.to_dict() | {"environment": environment()})
    else:
        for problem in report.problems:
            typer.echo(f"warning: {problem}" if problem.warning and not strict else str(problem))
        doubtful = () if strict else report.warnings
        typer.echo(f"{report.num_samples} samples: {_count(bad, 'error')}, {_count(doubtful, 'warning')}")
    if drop_bad:
        kept = _write_clean(report, targets, strict)
        typer.echo(f"kept {kept} of {report.num_samples} samples: {', '.join(map(str, targets))}", err=as_json)
    raise typer.Exit(1 if bad else 0)


def stats(
    manifests: _Manifests,
    out: Annotated[Path, typer.Option(help="Folder for stats.html and stats.json.", metavar="DIR")] = Path(
        "data-stats"
    ),
    as_json: _Json = False,
) -> None:
    """Picture data: hours, lengths of clips and texts, tasks, sources, vocabulary, as a page and as JSON.

    Example: `stapes data stats data/*.jsonl --out data-stats`
    """
    from ..data.stats import collect_stats, write_stats
    from ..environment import environment
    from .printing import print_json

    with _progress_bar("probing") as progress:
        figures: dict[str, Any] = collect_stats(manifests, progress=progress)
    figures["environment"] = environment()
    page = write_stats(figures, out)
    if as_json:
        print_json(figures)
        return
    rows = figures["manifests"]
    for row in rows if len(rows) == 1 else [*rows, figures["total"]]:
        typer.echo(
            f"{row['name']}: {row['num_samples']} samples, {row['hours']:.2f} h, {row['num_words']} words, "
            f"{row['num_different_words']} different"
        )
    typer.echo(f"page: {page}")


def prepare(
    corpus: Annotated[
        Literal["librispeech", "gigaspeech", "wavcaps", "audiocaps", "clotho", "musicnet", "salmonn"],
        typer.Argument(help="Which corpus; `salmonn`: SALMONN's annotation files, whose paths begin in ROOT."),
    ],
    root: Annotated[Path, typer.Argument(help="The corpus's folder, as it is released and unpacked.")],
    out: Annotated[Path, typer.Option(help="Folder to make, for the manifests and clips that are cut.", metavar="DIR")],
    split: Annotated[
        list[str] | None, typer.Option(help="Take only this part, e.g. test-other; may be given several times.")
    ] = None,
    annotation: Annotated[
        list[Path] | None, typer.Option(help="With `salmonn`: a JSON file; may be given several times.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out samples without usable audio; else they are an error.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Write manifests for both stages of training, for validation and test, from a corpus as it is released.

    Audio stays where it is and is named by relative paths; only out of GigaSpeech's and MusicNet's long recordings
    clips are cut, as FLAC. What each corpus gives: docs/data.md.

    Example: `stapes data prepare librispeech /data/LibriSpeech --out corpora/librispeech`
    """
    from ..data.prepare import write_reading
    from ..data.released import read_corpus
    from .printing import print_json

    reading = read_corpus(corpus, root, split or (), annotation or ())
    with _progress_bar("preparing") as progress:
        done = write_reading(reading, out, skip_missing=skip_missing, progress=progress)
    for note in done.notes:
        typer.echo(f"left out: {note}", err=True)
    for message in done.missing:
        typer.echo(f"left out: {message}", err=True)
    if as_json:
        manifests = {str(path): count for path, count in done.manifests.items()}
        print_json({"manifests": manifests, "missing": list(done.missing), "left_out": list(done.notes)})
        return
    for path, count in done.manifests.items():
        typer.echo(f"{count} samples: {path}")


def import_(
    source: Annotated[str, typer.Argument(help="A folder of `datasets`, audio or parquet files, or a Hub name.")],
    out: Annotated[Path, typer.Argument(help="Folder for the audio files and SPLIT.jsonl.", metavar="OUT")],
    split: Annotated[str, typer.Option(help="Which part of the corpus.")] = "train",
    config: Annotated[str | None, typer.Option(help="Which configuration of a Hub dataset.")] = None,
    audio: Annotated[str, typer.Option(help="Column of the audio.")] = "audio",
    text: Annotated[
        str | None, typer.Option(help="Column of the target; text, sentence, transcription, transcript or caption.")
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", help="Column of the id; `id` if it is there.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Column of the question, for qa.")] = None,
    task: Annotated[Literal["asr", "audiocaption", "qa"], typer.Option(help="What the samples are for.")] = "asr",
    limit: Annotated[int | None, typer.Option(min=1, help="Take only so many rows.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")] = False,
    as_json: _Json = False,
) -> None:
    """Turn a corpus of the `datasets` library into audio files and a manifest.

    Example: `stapes data import google/fleurs data/fleurs --config en_us --split test --text raw_transcription`
    """
    from ..data.corpora import Corpus, import_dataset
    from .printing import print_json

    corpus = Corpus(source, split, config, audio=audio, text=text, id=id_, prompt=prompt)
    with _progress_bar("importing") as progress:
        done = import_dataset(
            corpus, out, task=task, limit=limit, skip_bad=skip_bad, progress=lambda rows: progress(rows, limit)
        )
    for message in done.left_out:
        typer.echo(f"left out: {message}", err=True)
    if as_json:
        print_json({"manifest": str(done.manifest), "num_samples": done.num_samples, "left_out": list(done.left_out)})
    else:
        typer.echo(f"{done.num_samples} samples, {len(done.left_out)} left out: {done.manifest}")


def synth(
    sentences: Annotated[Path, typer.Argument(help="Text file, a sentence a line.")],
    out: Annotated[
        Path, typer.Option(help="Folder for NAME/*.flac and NAME.jsonl; NAME is the text's.", metavar="DIR")
    ],
    engine: Annotated[Literal["flite", "espeak-ng", "kokoro"], typer.Option(help="What speaks.")] = "flite",
    voices: Annotated[str, typer.Option(help="Names with commas between; each sentence gets one of them.")] = "slt",
    rates: Annotated[
        tuple[float, float], typer.Option(help="Slowest and fastest tempo, two numbers.", metavar="SLOWEST FASTEST")
    ] = (0.9, 1.1),
    seed: Annotated[int, typer.Option(min=0, help="Of voices and tempos.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Clips spoken at a time; one for each core.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder with kokoro's two files.", metavar="DIR")] = None,
    as_json: _Json = False,
) -> None:
    """Speak sentences with flite, espeak-ng or kokoro; a run that was interrupted goes on where it stopped.

    Example: `stapes data synth sentences.txt --engine flite --voices slt,rms,awb,kal16 --out data/flite`
    """
    import os

    from ..data.synth import open_engine, synthesize
    from .printing import print_json

    names = [name.strip() for name in voices.split(",") if name.strip()]
    speaker = open_engine(engine, names, model)
    with _progress_bar("speaking") as progress:
        done = synthesize(
            sentences,
            out,
            speaker,
            rates=rates,
            seed=seed,
            jobs=jobs or os.cpu_count() or 1,
            progress=progress,
        )
    if as_json:
        print_json({**vars(done), "manifest": str(done.manifest), "engine": engine, "voices": names, "seed": seed})
        return
    hours = done.seconds_of_speech / 3600
    typer.echo(f"{done.num_samples} samples, {hours:.2f} h, {done.num_spoken} spoken now: {done.manifest}")


def degrade(
    manifest: Annotated[Path, typer.Argument(help="A JSON Lines manifest.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME/*.flac and NAME.jsonl.", metavar="DIR")],
    snr_db: Annotated[float | None, typer.Option(help="Add noise at this signal-to-noise ratio.")] = None,
    gain_db: Annotated[float | None, typer.Option(help="Change the level, after the noise.")] = None,
    noise: Annotated[
        Path | None, typer.Option(help="Folder of recorded noises; white noise unless given.", metavar="DIR")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """Write a manifest's clips with noise or at another level, to test a model under worse conditions.

    Example: `stapes data degrade data/speech_test.jsonl --snr-db 10 --out data/noisy`
    """
    from ..data.degrade import degrade as write_degraded

    count = 0

    with _progress_bar("degrading") as show:

        def progress(done: int, wanted: int) -> None:
            nonlocal count
            count = done
            show(done, wanted)

        made = write_degraded(
            manifest, out, snr_db=snr_db, gain_db=gain_db, noise_folder=noise, seed=seed, progress=progress
        )
    typer.echo(f"{count} samples: {made}")


def _clean_paths(manifests: list[Path], out: Path) -> list[Path]:
    """Name the clean manifests, before the minutes it takes to decode everything."""
    from ..errors import UsageError

    if len(manifests) == 1 and not out.is_dir():
        targets = [out]
    else:
        # SALMONN documents become JSON Lines.
        targets = [out / manifest.with_suffix(".jsonl").name for manifest in manifests]
    taken = {manifest.resolve() for manifest in manifests}
    for target in targets:
        if target.resolve() in taken:
            raise UsageError(f"--drop-bad {out}: would write over {target}, which is checked; name another place")
        if targets.count(target) > 1:
            raise UsageError(f"--drop-bad {out}: two manifests would both become {target}; check them one by one")
        if target.parent.exists() and not target.parent.is_dir():
            raise UsageError(f"--drop-bad {out}: {target.parent} is a file; several manifests need a folder")
    return targets


def _write_clean(report: CheckReport, targets: list[Path], strict: bool) -> int:
    from ..data.sample import write_manifest
    from ..errors import ManifestError

    good = report.good_samples(strict)
    for manifest, samples, target in zip(report.manifests, good, targets, strict=bool(targets)):
        if not samples:
            raise ManifestError(f"{manifest}: no sample is good; {target} is not written")
        write_manifest(samples, target)
    return sum(map(len, good))


def _count(problems: Sequence[Problem], noun: str) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(p.kind for p in problems).most_common())
    return f"{len(problems)} {noun}{'' if len(problems) == 1 else 's'}" + (f" ({kinds})" if kinds else "")


@contextmanager
def _progress_bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar on stderr while it lasts, if someone is watching; give the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
