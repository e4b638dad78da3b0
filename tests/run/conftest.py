"""A recipe that runs whole in seconds: parts in miniature as folders, generated speech-like clips, both stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPE = """
name: small
seed: 1
model:
  speech_encoder: ./encoder
  llm: ./llm
  connector: {kind: stacked_mlp, stack: 8, hidden_size: 64}
train:
  align:
    data: {train.jsonl: 1}
    valid: [valid.jsonl]
    max_steps: 4
    per_device_train_batch_size: 2
    save_steps: 2
    logging_steps: 1
    clip: {kind: dynamic, percentile: 50}
  tune:
    data: {train.jsonl: 1}
    trainable: [connector, lora]
    lora: {r: 2, lora_alpha: 4}
    max_steps: 3
    per_device_train_batch_size: 2
    save_steps: 1
    logging_steps: 1
compress:
  - {kind: merge_lora}
  - {kind: quantize}
evaluate: {data: [test.jsonl], batch_size: 4, max_new_tokens: 8}
bench: {audio_s: 1, new_tokens: 4, warmup: 1, repeats: 3}
report: {samples: 2}
"""


@pytest.fixture(scope="session")
def small_parts(
    tmp_path_factory: pytest.TempPathFactory, parts: Path, speech_like: Callable[[float, int], np.ndarray]
) -> Path:
    """A folder with `encoder/`, `llm/`, clips and manifests that `RECIPE` names; copy what you change."""
    folder = tmp_path_factory.mktemp("small") / "parts"
    shutil.copytree(parts, folder)
    (folder / "clips").mkdir()
    for split, count in (("train", 6), ("valid", 2), ("test", 4)):
        lines = []
        for number in range(count):
            name, duration_s = f"clips/{split}{number}.wav", 0.4 + 0.3 * number
            soundfile.write(folder / name, speech_like(duration_s, number), 16_000)
            line = {"id": f"{split}{number}", "audio": name, "duration_s": duration_s, "target": f"word {number}"}
            lines.append(json.dumps(line) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return folder
