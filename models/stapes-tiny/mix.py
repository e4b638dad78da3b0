"""Take the mean of two stages' weights, as a model that neither of them has learnt by heart.

    python models/stapes-tiny/mix.py BEFORE AFTER OUT [SHARE]

BEFORE and AFTER are trained-part folders of one shape, one trained from the other. OUT gets the mean of their tensors,
of which SHARE is AFTER's (a half), but for the adapters, which are AFTER's alone: a product of two means is no mean of
two products.

Source: weights averaged along and between runs of fine-tuning (Wortsman et al. 2022, Model soups, arXiv 2203.05482).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from stapes.assembly import TRAINED_FILE, part_of


def main(before: Path, after: Path, out: Path, share: float = 0.5) -> None:
    """Write the mean."""
    old, new = load_file(before / TRAINED_FILE), load_file(after / TRAINED_FILE)
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (old, new)]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"{before} and {after} hold different tensors")
    shutil.copytree(after, out)
    mean = {name: new[name] if part_of(name) == "lora" else (1 - share) * old[name] + share * new[name] for name in new}
    save_file(mean, out / TRAINED_FILE, metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(float, sys.argv[4:]))
