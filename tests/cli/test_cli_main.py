"""How the program speaks and leaves: help, exit codes, one line an error."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from stapes import __version__
from stapes.cli.main import app, main
from stapes.errors import RecipeError, StapesError

VERBS = [
    "run",
    "check",
    "eval",
    "bench",
    "report",
    "transcribe",
    "ask",
    "convert salmonn",
    "data check",
    "data stats",
    "data import",
]


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example(verb: str) -> None:
    done = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"stapes {verb}" in done.stdout
    assert "Example: " in done.stdout


def test_help_lists_these_verbs_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom stapes.cli import main\nsys.argv = ['stapes', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in {verb.split()[0] for verb in VERBS}:
        assert f" {verb} " in done.stdout


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"{__version__}\n"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["stapes", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("check", "none.yaml"), 2, "error: none.yaml: no such recipe\n"),
        (("data", "check", "none.jsonl"), 1, "error: none.jsonl: no such manifest\n"),
        (("transcribe", "none.wav", "--model", "none"), 1, "error: none.wav: no such file\n"),
        (("check", "x.yaml", "--set", "seed"), 2, "error: --set seed: wanted KEY=VALUE, e.g. "),
        (("report", "none"), 1, "error: none: "),
        (("eval", "none", "--manifest", "none.jsonl"), 1, "error: none"),
        (("bench", "none"), 1, "error: none: no such model folder\n"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_line_and_no_traceback(
    arguments: tuple[str, ...],
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("name: x\n")
    assert run_main(monkeypatch, *arguments) == code
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(told.rstrip("\n"))
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_an_unknown_verb_or_option_is_mistyped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "trian") == 2
    assert "trian" in capsys.readouterr().err
    assert run_main(monkeypatch, "run", "x.yaml", "--redu") == 2
    assert "--redu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (StapesError("data is broken"), 1, "error: data is broken\n"),
        (RecipeError("x.yaml: no"), 2, "error: x.yaml: no\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"),
            1,
            "error: runs/x: No space left on device; free some space and run the same command again\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "error: /x: Permission denied\n"),
    ],
)  # fmt: skip
def test_errors_become_one_line_and_a_code(
    error: BaseException,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    failing = typer.Typer()
    failing.command()(fail)
    monkeypatch.setattr(sys.modules["stapes.cli.main"], "app", failing)
    assert run_main(monkeypatch) == code
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("verb", "kept"),
    [
        ("run", "; finished steps are kept, and the same command goes on from there"),
        ("ablate", "; finished steps are kept, and the same command goes on from there"),
        ("eval", "; answers are kept, and the same command goes on from there"),
        ("data synth", "; spoken sentences are kept, and the same command goes on from there"),
        ("data degrade", ""),
        ("transcribe", ""),
    ],
)
def test_ctrl_c_says_what_is_kept(
    verb: str, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    failing = typer.Typer()
    inner = typer.Typer()
    failing.add_typer(inner, name="data")
    for group, name in ((failing, "other"), (inner, "other")):
        group.command(name)(fail)  # a single command would have no name
    (inner if " " in verb else failing).command(verb.rpartition(" ")[2])(fail)
    monkeypatch.setattr(sys.modules["stapes.cli.main"], "app", failing)
    assert run_main(monkeypatch, *verb.split()) == 130
    assert capsys.readouterr().err == f"error: interrupted{kept}\n"


def test_programming_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise TypeError("ours")

    failing = typer.Typer(pretty_exceptions_enable=False)
    failing.command()(fail)
    monkeypatch.setattr(sys.modules["stapes.cli.main"], "app", failing)
    monkeypatch.setattr(sys, "argv", ["stapes"])
    with pytest.raises(TypeError, match="ours"):
        main()


def test_check_prints_the_resolved_recipe_as_json(small_recipe: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(small_recipe), "--json", "--set", "train.align.max_steps=7"])
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed["recipe"]["train"]["align"]["max_steps"] == 7
    assert list(printed["samples"].values()) == [1]


@pytest.mark.parametrize(
    ("override", "code", "told"),
    [
        ("train.align.trainer.warmup_step=3", 2, "train.align.trainer.warmup_step is not a field of TrainingArguments"),
        (
            "evaluate.data=[a.jsonl]",
            1,
            "evaluate.data: 1 samples of ",
        ),
    ],
)
def test_check_finds_what_a_run_refuses(
    override: str,
    code: int,
    told: str,
    small_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(small_recipe.parent)
    assert run_main(monkeypatch, "check", "r.yaml", "--set", override) == code
    assert f"error: r.yaml: {told}" in capsys.readouterr().err


def test_an_answer_that_was_cut_is_told_so(tiny_model_folder: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000)
    question = ["ask", str(clip), "Hi?", "--model", str(tiny_model_folder), "--max-new-tokens", "3"]
    done = CliRunner().invoke(app, question)
    assert done.exit_code == 0
    assert done.stderr.endswith(f"{clip}: the answer was cut after 3 tokens; `--max-new-tokens` allows more\n")
    (said,) = json.loads(CliRunner().invoke(app, [*question, "--json"]).stdout)
    assert (said["num_tokens"], said["truncated"]) == (3, True)


def test_a_seed_below_zero_is_mistyped_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, "eval", "--manifest", "none.jsonl", "--seed", "-1") == 2


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text('{"id": "1", "audio": "1.wav", "target": "one"}\n')
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nmodel: {speech_encoder: a/b, llm: c/d, connector: {kind: stacked_mlp}}\n"
        "train: {align: {data: {a.jsonl: 1}, max_steps: 3}}\n"
    )
    return path


def test_a_question_with_the_audio_token_is_mistyped(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000)
    token = "<|reserved_special_token_0|>"
    question = ["ask", str(tmp_path / "clip.wav"), f"What is {token}?", "--model", str(tiny_model_folder)]
    assert run_main(monkeypatch, *question) == 2
    assert capsys.readouterr().err == f"error: the question holds the audio token '{token}'; take it out\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are not text")
def test_file_names_that_are_no_text_are_printed_escaped(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [tmp_path / os.fsdecode(name) for name in (b"\xff.wav", b"\xc3\xa4.wav")]
    for clip in clips:
        with clip.open("wb") as stream:
            soundfile.write(stream, np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000, format="WAV")
    arguments = ["transcribe", *map(str, clips), "--model", str(tiny_model_folder), "--max-new-tokens", "2"]
    printed = []
    for options in ([], ["--json"]):
        # The streams of a process of its own: pytest's take what these refuse, and the other way round.
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
        stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            patch.setattr(sys, "argv", ["stapes", *arguments, *options])
            with pytest.raises(SystemExit) as end:
                main()
        assert end.value.code == 0
        stdout.seek(0)
        printed.append(stdout.read())
    starts = [line.partition("\t")[0] for line in printed[0].splitlines()]
    assert starts == [f"{tmp_path}/\\udcff.wav", f"{tmp_path}/ä.wav"]
    assert [said["audio"] for said in json.loads(printed[1])] == list(map(str, clips))
