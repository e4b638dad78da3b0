"""Copy the last stage of the training run to this folder, tensors in float16 or less, the tokenizer without blanks.

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
SPELLING = "connector.speller.groups.weight"
"""Its sums are scaled to length 1 (`Speller`), so that 8 bits will do, at whatever scale fits them best."""

NOT_THE_MODEL = {TRAINED_FILE, "step.json", "losses.jsonl", "trained.json"}


def main(stage: Path) -> None:
    """Write the model's files beside this one."""
    tensors = load_file(stage / TRAINED_FILE)
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor.half()).all()]:
        raise SystemExit(f"beyond the range of float16: {', '.join(broken)}")
    packed = {name: tensor.half() for name, tensor in tensors.items()}
    if SPELLING in tensors:
        fitting = tensors[SPELLING] * (torch.finfo(torch.float8_e4m3fn).max / tensors[SPELLING].abs().max())
        packed[SPELLING] = fitting.to(torch.float8_e4m3fn)
    save_file(packed, HERE / TRAINED_FILE, metadata={"format": "pt"})
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
