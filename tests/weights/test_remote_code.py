"""An LLM whose code lies with its weights, as LLaMA-MoE's does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stapes import weights
from stapes.assembly import build, load_model, save_model
from stapes.errors import WeightsError
from stapes.model import ConnectorConfig
from stapes.weights import remote_code

CONFIGURATION = """
from transformers import LlamaConfig


class LlamaMoEConfig(LlamaConfig):
    model_type = "llama_moe"
"""
MODELING = """
import pathlib
from transformers import LlamaForCausalLM
from .configuration_llama_moe import LlamaMoEConfig

# What a test can see of it having run.
(pathlib.Path({mark!r})).write_text("ran")


class LlamaMoEForCausalLM(LlamaForCausalLM):
    config_class = LlamaMoEConfig

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs
"""
CONNECTOR = {"kind": "stacked_mlp", "frames_per_window": 8, "hidden_size": 64}


@pytest.fixture
def llm(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny LLM under an architecture that transformers lacks; nothing is allowed yet."""
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "llama-moe"
    folder.mkdir()
    for path in (parts / "llm").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    auto_map = {
        "AutoConfig": "configuration_llama_moe.LlamaMoEConfig",
        "AutoModelForCausalLM": "modeling_llama_moe.LlamaMoEForCausalLM",
    }
    config |= {"model_type": "llama_moe", "architectures": ["LlamaMoEForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_llama_moe.py").write_text(CONFIGURATION)
    (folder / "modeling_llama_moe.py").write_text(MODELING.format(mark=str(tmp_path / "mark")))
    return folder


@pytest.fixture
def forgetting() -> Any:
    """Transformers without the architecture again, as a new process has it."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    yield
    remote_code._LOADED.clear()
    config_class = CONFIG_MAPPING._extra_content.pop("llama_moe", None)
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(config_class, None)


def build_with(parts: Path, llm: Path) -> Any:
    return build(str(parts / "encoder"), str(llm), ConnectorConfig(**CONNECTOR))


@pytest.mark.usefixtures("forgetting")
def test_code_runs_only_once_it_is_allowed(
    llm: Path, parts: Path, tmp_path: Path, speech_like: Callable[[float, int], np.ndarray]
) -> None:
    message = (
        r"llama-moe: is a `llama_moe` model, whose code lies with its weights \(configuration_llama_moe\.py, "
        r"modeling_llama_moe\.py\) and would run on this machine; read it, then allow it with "
        r"`model\.trust_remote_code: true` in the recipe$"
    )
    with pytest.raises(WeightsError, match=message):
        build_with(parts, llm)
    weights.allow_code(str(llm))
    assert not (tmp_path / "mark").exists()

    model, processor = build_with(parts, llm)
    assert (tmp_path / "mark").read_text() == "ran"
    assert type(model.language_model).__name__ == "LlamaMoEForCausalLM"
    plain, _ = build_with(parts, parts / "llm")
    inputs = processor.prepare([speech_like(1.0, 0)], ["Hi?"])
    with torch.no_grad():
        logits = model(**inputs).logits
        torch.testing.assert_close(logits, 2 * plain(**inputs).logits)
    for trained_only in (True, False):
        save_model(model, processor, tmp_path / f"model-{trained_only}", trained_only=trained_only)
        back, _ = load_model(tmp_path / f"model-{trained_only}")
        with torch.no_grad():
            assert torch.equal(back(**inputs).logits, logits)


@pytest.mark.usefixtures("forgetting")
def test_what_is_allowed_is_this_code_and_no_other(llm: Path, parts: Path) -> None:
    weights.allow_code(str(llm))
    path = llm / "modeling_llama_moe.py"
    path.write_text(path.read_text() + "\nprint('and more')\n")
    with pytest.raises(WeightsError, match="would run on this machine"):
        build_with(parts, llm)


@pytest.mark.usefixtures("forgetting")
def test_code_in_folders_below_counts_and_other_places_do_not(llm: Path, parts: Path, tmp_path: Path) -> None:
    weights.allow_code(str(llm))
    below = llm / "below" / "more.py"
    below.parent.mkdir()
    below.write_text("x = 1\n")
    with pytest.raises(WeightsError, match=r"\(below/more\.py, configuration_llama_moe\.py, modeling_llama_moe\.py\)"):
        weights.admit_code(str(llm))
    (tmp_path / "evil.py").write_text("raise SystemExit\n")
    config = json.loads((llm / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = f"{tmp_path}/evil.Model"
    (llm / "config.json").write_text(json.dumps(config))
    weights.allow_code(str(llm))
    with pytest.raises(WeightsError, match="does not lie with the weights"):
        weights.admit_code(str(llm))


def test_code_that_lies_elsewhere_is_not_fetched(llm: Path, parts: Path) -> None:
    config = json.loads((llm / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "someone/else--modeling.Model"
    (llm / "config.json").write_text(json.dumps(config))
    weights.allow_code(str(llm))
    with pytest.raises(WeightsError, match=r"its AutoModelForCausalLM \(someone/else--modeling\.Model\) does not lie "):
        build_with(parts, llm)


@pytest.mark.usefixtures("forgetting")
def test_broken_code_is_named(llm: Path, parts: Path) -> None:
    (llm / "modeling_llama_moe.py").write_text("import not_there_at_all\n")
    weights.allow_code(str(llm))
    with pytest.raises(
        WeightsError, match=r"llama-moe: the code that lies with its weights cannot be used: .*not_there"
    ):
        build_with(parts, llm)


@pytest.mark.usefixtures("forgetting")
def test_a_new_process_remembers_what_is_allowed(llm: Path, parts: Path, tmp_path: Path) -> None:
    weights.allow_code(str(llm))
    save_model(*build_with(parts, llm), tmp_path / "model", trained_only=True)
    code = f"from stapes.assembly import load_model; load_model({str(tmp_path / 'model')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    (tmp_path / "cache" / "allowed_code.json").unlink()
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert "would run on this machine" in failed.stderr


def test_transformers_own_code_comes_first(llm: Path, parts: Path, tmp_path: Path) -> None:
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    model, _ = build_with(parts, llm)
    assert type(model.language_model).__module__.startswith("transformers.")
    assert not (tmp_path / "mark").exists()
