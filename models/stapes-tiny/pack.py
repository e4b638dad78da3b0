"""Copy the last stage of the training run to this folder, tensors in float16 and the tokenizer without blanks.

    python models/stapes-tiny/pack.py runs/stapes-tiny/answer

What is measured is what was packed.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stapes.assembly import TRAINED_FILE

HERE = Path(__file__).resolve().parent
NOT_THE_MODEL = {TRAINED_FILE, "step.json", "losses.jsonl", "trained.json"}


def main(stage: Path) -> None:
    """Write the model's files beside this one."""
    tensors = load_file(stage / TRAINED_FILE)
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor.half()).all()]:
        raise SystemExit(f"beyond the range of float16: {', '.join(broken)}")
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(halves, HERE / TRAINED_FILE, metadata={"format": "pt"})
    for path in sorted(stage.iterdir()):
        if path.is_file() and path.name not in NOT_THE_MODEL:
            shutil.copyfile(path, HERE / path.name)
    _compact(HERE / "tokenizer.json")
    print(f"{(HERE / TRAINED_FILE).stat().st_size / 1e6:.1f} MB")


def _compact(tokenizer: Path) -> None:
    """Write what is in it without line breaks, and merges as texts, which `tokenizers` reads as well."""
    settings = json.loads(tokenizer.read_text("utf-8"))
    settings["model"]["merges"] = [" ".join(merge) for merge in settings["model"]["merges"]]
    tokenizer.write_text(json.dumps(settings, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
