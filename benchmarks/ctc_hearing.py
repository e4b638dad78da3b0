"""Measure what the CTC of a model's connector hears, without its LLM: greedy word error rates.

    python benchmarks/ctc_hearing.py MODEL MANIFEST…

Prints a line of JSON for each manifest. Words are compared as CTC spells them (`data.spoken`); samples in which nothing
is said are left out.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path

import jiwer
import torch

from stapes.assembly import load_model
from stapes.data.sample import load_manifest, load_sample_audio
from stapes.data.spoken import spoken_words
from stapes.model import CTCCompressor, CTCVocabulary


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+")
    asked = parser.parse_args()
    model, processor = load_model(asked.model)
    if not isinstance(model.connector, CTCCompressor):
        raise SystemExit(f"{asked.model}: its connector hears nothing by CTC")
    vocabulary = CTCVocabulary.of(processor.tokenizer, model.config.connector_config.ctc_merges)
    for manifest in asked.manifests:
        said, heard = [], []
        for sample in load_manifest(manifest):
            if words := spoken_words(sample.target):
                features = processor.feature_extractor([load_sample_audio(sample)])["input_features"]
                best = model.connector.read(*model.encode(features)).logits[0].argmax(dim=-1).tolist()
                said.append(words)
                heard.append(vocabulary.decode([number for number, _ in groupby(best) if number]))
        wer = round(100 * float(jiwer.wer(said, heard)), 1)
        print(json.dumps({"manifest": manifest.name, "wer": wer, "n": len(said)}), flush=True)


if __name__ == "__main__":
    main()
