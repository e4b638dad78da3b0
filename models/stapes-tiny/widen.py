"""Let a model hear more pieces of words: what it learnt stays, the others are further rows of the LLM's table.

    python models/stapes-tiny/widen.py runs/stapes-tiny-hear/hear MERGES OUT

MERGES is how many merges of the LLM's BPE make pieces from now on; OUT is a folder for `start_from`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stapes.assembly import build, load_model, save_model
from stapes.model import ConnectorConfig


def main(folder: Path, merges: int, out: Path) -> None:
    """Write the model with the same weights and more pieces."""
    old, processor = load_model(folder)
    if others := {*(old.config.trained_parts or ())} - {"connector"}:
        raise SystemExit(f"{folder}: {', '.join(sorted(others))} learnt too, which would be lost; widen it before that")
    shape = ConnectorConfig(**{**old.config.connector_config.to_dict(), "ctc_merges": merges})
    sources = old.config.sources or {}
    new, _ = build(sources["speech_encoder"], sources["llm"], shape, prompt=processor.prompt_template)
    learnt = old.connector.state_dict()
    rows = learnt.pop("token_embeddings.weight")
    missing, unexpected = new.connector.load_state_dict(learnt, strict=False)
    assert (missing, unexpected) == (["token_embeddings.weight"], []), (missing, unexpected)
    new.config.trained_parts = old.config.trained_parts
    save_model(new, processor, out, trained_only=True)
    print(f"{len(rows)} → {new.config.connector_config.num_ctc_tokens} pieces")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
