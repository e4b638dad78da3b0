"""Recipes side by side, and the published ones among them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stapes.cli.main import app
from stapes.cli.plan import make_predictor
from stapes.errors import RecipeError
from stapes.plan import find_device
from stapes.plan.ablation import Ablation, compare_recipes, to_csv, to_markdown
from stapes.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PUBLISHED_GIB = {
    "final-baseline": 9.1761,
    "final-recipe": 4.0938,
    "sound-beats": 9.2139,
    "sound-none": 8.8462,
    "lora-1b-nf4": 4.0938,
    "lora-3b-nf4": 5.8511,
}
"""The memory column of the published study, for the rows that our recipes are."""

BASE = """
name: {name}
model:
  speech_encoder: openai/whisper-base
  llm: HuggingFaceTB/SmolLM2-135M
  connector: {{kind: stacked_mlp, stack: {stack}}}
train: {{tune: {{data: {{/x.jsonl: 1}}, max_steps: 1}}}}
"""


def ablation_of(paths: list[Path], runs: Path | None = None, protocol: Any = "nota") -> Ablation:
    predict = make_predictor(find_device("v100-32gb", None), protocol, "float32", None, 0.0)
    return compare_recipes({path: load_recipe(path) for path in paths}, predict, runs)


def write_recipes(folder: Path) -> list[Path]:
    paths = [folder / f"stack-{stack}.yaml" for stack in (5, 10)]
    for path, stack in zip(paths, (5, 10), strict=True):
        path.write_text(BASE.format(name=path.stem, stack=stack))
    return paths


def test_the_published_rows_take_the_published_memory() -> None:
    ablation = ablation_of(sorted((RECIPES / "ablations").glob("*.yaml")))
    assert list(ablation.tables) == ["final", "llm", "lora", "sound", "whisper"]
    rows = {row["recipe"]: row for rows in ablation.tables.values() for row in rows}
    for name, gib in PUBLISHED_GIB.items():
        assert rows[name]["predicted_peak_bytes"] / 2**30 == pytest.approx(gib, rel=0.005), name
    assert rows["final-baseline"]["trained"] == 27_498_240
    assert {name: row["sound_encoder"] for name, row in rows.items() if name.startswith("sound-")} == {
        "sound-beats": "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2",
        "sound-eat": "EAT-base_epoch30_pt",
        "sound-none": None,
    }


def test_the_final_recipe_stands_in_its_table_as_it_stands_alone() -> None:
    def content(name: str) -> dict[str, Any]:
        return load_recipe(RECIPES / name).model_dump(exclude={"name"})

    assert content("ablations/final-recipe.yaml") == content("nota-final.yaml")
    assert content("ablations/final-baseline.yaml") == content("salmonn-3b.yaml")


def test_what_a_run_measured_stands_beside_what_is_predicted(tmp_path: Path) -> None:
    run = tmp_path / "runs/stack-10"
    scores = {"tasks": {"asr": {"metrics": {"wer": {"value": 12.5}}}}}
    bench = {
        "memory_bytes": {"load_peak": 3 << 30, "run_peak": 2 << 30},
        "latency_ms": {"ttft": {"p50": 40.0}, "per_token": {"p50": 5.25}},
    }
    for name, value in (("eval/tune/scores.json", scores), ("bench/tune/bench.json", bench)):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text(json.dumps(value))
    ablation = ablation_of(write_recipes(tmp_path), tmp_path / "runs", "stapes")
    five, ten = ablation.tables["stack"]
    assert {key: value for key, value in ten.items() if key.startswith("measured")} == {
        "measured_wer": 12.5,
        "measured_cider_d": None,
        "measured_spider": None,
        "measured_ttft_ms": 40.0,
        "measured_tpot_ms": 5.25,
        "measured_peak_bytes": 3 << 30,
    }
    assert five["measured_wer"] is None
    heads, _, first, second = [line for line in to_markdown(ablation).splitlines() if line.startswith("|")]
    columns = [head.strip() for head in heads.strip("|").split("|")]
    assert columns == [
        *("variant", "parameters, M", "trained, M"),
        *("predicted memory, GiB", "predicted TTFT, ms", "predicted TPOT, ms"),
        *("measured WER, %", "measured memory, GiB", "measured TTFT, ms", "measured TPOT, ms"),
    ]
    assert first.endswith("| – | – | – | – |")
    assert second.endswith("| 12.50 | 3.0000 | 40.0 | 5.2 |")
    assert "All with speech encoder: whisper-base; LLM: SmolLM2-135M; LLM's linears: float32." in to_markdown(ablation)


def test_what_divides_cells_does_not_divide_a_cell(tmp_path: Path) -> None:
    ablation = ablation_of(write_recipes(tmp_path), protocol="stapes")
    ablation.tables["stack"][0]["adapters"] = r"16, on .*\.(q|v)_proj"
    heads, _, first, _ = [line for line in to_markdown(ablation).splitlines() if line.startswith("|")]
    assert r"(q\|v)_proj" in first
    assert first.replace(r"\|", "").count("|") == heads.count("|")


def test_the_csv_holds_every_figure_unrounded(tmp_path: Path) -> None:
    ablation = ablation_of(write_recipes(tmp_path), protocol="stapes")
    rows = list(csv.DictReader(io.StringIO(to_csv(ablation))))
    assert [(row["table"], row["recipe"], row["measured_wer"]) for row in rows] == [
        ("stack", "stack-5", ""),
        ("stack", "stack-10", ""),
    ]
    assert int(rows[0]["predicted_peak_bytes"]) == ablation.tables["stack"][0]["predicted_peak_bytes"]


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = write_recipes(tmp_path)
    paths[1].write_text(BASE.format(name="stack-5", stack=10))
    with pytest.raises(RecipeError, match=r"stack-10\.yaml: its name `stack-5` is that of .*stack-5\.yaml"):
        ablation_of(paths)


def test_the_verb_prints_markdown_or_json_and_writes_csv(tmp_path: Path) -> None:
    words = ["ablate", *map(str, write_recipes(tmp_path)), "--device", "v100-32gb", "--out", str(tmp_path / "runs")]
    shown = CliRunner().invoke(app, [*words, "--csv", str(tmp_path / "a.csv")])
    assert shown.stdout.startswith("## stack\n\nAll with ")
    assert (tmp_path / "a.csv").read_text().count("\n") == 3
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [row["variant"] for row in document["tables"]["stack"]] == ["stack-5", "stack-10"]
    assert not (tmp_path / "runs").exists()


def test_what_is_only_planned_can_be_read_in_a_report(tmp_path: Path) -> None:
    words = ["ablate", *map(str, write_recipes(tmp_path)), "--report", "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, [*words, "--device", "v100-32gb"])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "runs/report/report.html").read_text(encoding="utf-8")
    assert "No variant is scored or measured yet." in page
    assert "predicted memory, GiB" in page
    # It says how it is made again, tables included.
    assert f"stapes ablate {tmp_path / 'stack-5.yaml'}" in page
    assert "--report" in page
    assert "variants of 0 runs" not in page


def test_what_was_trained_stays_so_when_it_is_merged_and_is_nothing_before(tmp_path: Path) -> None:
    from test_plan_models import write_model

    stage = {"data": {"/x.jsonl": 1}, "max_steps": 1, "trainable": ["connector", "lora"]}
    steps = [{"kind": "merge_lora"}, {"kind": "quantize"}]
    values = {"name": "more", "start_from": str(write_model(tmp_path / "model")), "compress": steps}
    path = tmp_path / "more.yaml"
    trained = {}
    for train in ({"more": stage}, {}):
        path.write_text(json.dumps({**values, "train": train}))
        (rows,) = ablation_of([path], protocol="stapes").tables.values()
        trained |= {(bool(train), row["variant"].partition("/")[2]): row["trained"] for row in rows}
    lora = 30 * 16 * (576 + 576 + 576 + 192)
    assert trained[True, "more"] > lora
    assert trained == {
        (True, "base"): 0,
        **dict.fromkeys([(True, name) for name in ("more", "merge_lora", "quantize")], trained[True, "more"]),
        **dict.fromkeys([(False, name) for name in ("base", "merge_lora", "quantize")], 0),
    }


def test_of_an_encoder_only_the_layers_that_learn_are_counted(tmp_path: Path) -> None:
    (path,) = write_recipes(tmp_path)[:1]
    text = path.read_text()

    def trained(settings: str = "") -> int:
        path.write_text(text.replace("max_steps: 1}", f"max_steps: 1{settings}}}"))
        ((row,),) = ablation_of([path]).tables.values()
        return row["trained"]

    before, whole = trained(), ", trainable: [connector, speech_encoder]"
    width, ffn = 512, 2048
    layer = 4 * width * width + 3 * width + 2 * width * ffn + ffn + width + 4 * width
    assert trained(f"{whole}, speech_encoder_layers: 2") - before == 2 * layer + 2 * width
    convolutions = 3 * 80 * width + 3 * width * width + 2 * width
    assert trained(whole) - before == 6 * layer + 2 * width + convolutions


def test_of_a_ctc_compressor_only_what_its_stages_teach_is_counted(tmp_path: Path) -> None:
    hear = {"data": {"/x.jsonl": 1}, "max_steps": 1, "objective": "ctc"}
    answer = {**hear, "objective": "answer"}
    model = {"speech_encoder": "openai/whisper-base", "llm": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    values = {"name": "ctc", "model": {**model, "connector": {"kind": "ctc_compressor"}}}
    path = tmp_path / "ctc.yaml"

    def trained(train: dict[str, Any]) -> int:
        path.write_text(json.dumps({**values, "train": train}))
        ((row,),) = ablation_of([path], protocol="stapes").tables.values()
        return row["trained"]

    heard, both = trained({"hear": hear}), trained({"hear": hear, "answer": answer})
    D, E, D_llm = 512, 512, 576
    # detail, sound_out, sound_in and norm_sound are for the LLM alone.
    assert both - heard == D * D_llm + (D + 1) * D_llm + (E + 1) * D + D_llm
    assert heard == 2 * E + D * E * 8 + D + 2 * (4 * D + 3 * D * D + 3 * D + D * D + D + 2 * D * 2048 + 2048 + D) + (
        2 * D + (D + 1) * D_llm + 2 * D_llm + D_llm + 1
    )


def test_how_the_llms_linears_are_stored_is_said_of_them(tmp_path: Path) -> None:
    (path,) = write_recipes(tmp_path)[:1]
    text = path.read_text()
    stored = {}
    for skip in ("connector", "language_model", "layers.0."):
        path.write_text(f"{text}compress: [{{kind: quantize, skip: [{skip}]}}]\n")
        ((_, row),) = ablation_of([path], protocol="stapes").tables.values()
        stored[skip] = row["stored"]
    assert stored == {"connector": "int8", "language_model": "float32", "layers.0.": "float32, int8"}
