"""Change how a model's CTC compressor hears, and keep all that it learnt and that still fits.

    python models/stapes-tiny/reshape.py MODEL OUT [--merges N] [--spelling N] [--letters N] [--phones N]
        [--sharpness X] [--weight X] [--sound-layer N] [--detail X] [--words FILE]

`--merges`: how many merges of the LLM's BPE make the pieces that CTC hears from now on; few, and words are spelt in
short pieces, each of which is often heard; many, and they are heard whole, the rare ones never. `--spelling`,
`--letters`, `--phones`, `--sharpness`, `--weight` and `--sound-layer`: the `ctc_…` and `sound_layer` of
`ConnectorConfig`; spelling, letters, phones and a sound layer have all to learn, but phones begin with all that letters
of the same width have learnt. `--letters 0` takes letters away. `--detail`: a factor for the learnt rest that the LLM
reads beside the embeddings of what was heard. `--words`: the words that a transcript may hold. OUT is a folder for
`start_from`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from stapes.assembly import begin_connector, load_model, save_model
from stapes.model import ConnectorConfig, CTCCompressor, CTCVocabulary, WordList
from stapes.model.speller import letter_groups

OF_VOCABULARY = ("token_embeddings.weight", "speller.spelling")


@torch.no_grad()
def main() -> None:
    """Write the model anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--merges", type=int)
    parser.add_argument("--spelling", type=int)
    parser.add_argument("--letters", type=int)
    parser.add_argument("--phones", type=int)
    parser.add_argument("--sharpness", type=float)
    parser.add_argument("--weight", type=float)
    parser.add_argument("--sound-layer", type=int)
    parser.add_argument("--detail", type=float, default=1.0)
    parser.add_argument("--words", type=Path)
    asked = parser.parse_args()
    model, processor = load_model(asked.model)
    before, old = model.config.connector_config, model.connector
    if not isinstance(old, CTCCompressor):
        raise SystemExit(f"{asked.model}: its connector hears nothing by CTC")
    merges = asked.merges or before.ctc_merges
    vocabulary = CTCVocabulary(processor.tokenizer, merges)
    shape = ConnectorConfig(
        **{
            **before.to_dict(),
            "ctc_merges": merges,
            "num_ctc_tokens": len(vocabulary),
            "num_letter_groups": len(letter_groups(vocabulary.pieces)[0]),
            "ctc_spelling": asked.spelling or before.ctc_spelling,
            "ctc_letters": before.ctc_letters if asked.letters is None else asked.letters,
            "ctc_phones": asked.phones or before.ctc_phones,
            "ctc_sharpness": asked.sharpness or before.ctc_sharpness,
            "ctc_weight": before.ctc_weight if asked.weight is None else asked.weight,
            "sound_layer": asked.sound_layer or before.sound_layer,
        }
    )
    torch.manual_seed(0)
    new = CTCCompressor(shape, model.config.speech_config.d_model, model.config.text_config.hidden_size)
    learnt = {name: tensor for name, tensor in old.state_dict().items() if name not in OF_VOCABULARY}
    if new.namer is not None and old.namer is None:
        learnt = {name: tensor for name, tensor in learnt.items() if not name.startswith(("sound_", "norm_sound"))}
    if new.phones is not None and old.phones is None:
        learnt |= {
            name.replace("letters.", "phones."): tensor
            for name, tensor in learnt.items()
            if name.startswith("letters.") and not name.startswith("letters.out")
        }
    if merges != before.ctc_merges:
        learnt.pop("speller.groups.weight", None)  # its rows are numbered by the pieces
    sizes = {name: tensor.shape for name, tensor in new.state_dict().items()}
    learnt = {name: tensor for name, tensor in learnt.items() if sizes.get(name) == tensor.shape}
    model.connector, model.config.connector_config = new, shape
    begin_connector(model, vocabulary)
    fresh, unexpected = new.load_state_dict(learnt, strict=False)
    assert not unexpected, unexpected
    new.detail.weight.mul_(asked.detail)
    model.speech_encoder.tap_layer = shape.sound_layer
    if asked.words is not None:
        processor.words = WordList.read(asked.words)
    save_model(model, processor, asked.out, trained_only=True)
    print(f"{before.num_ctc_tokens} → {len(vocabulary)} pieces; not learnt yet: {', '.join(fresh)}")


if __name__ == "__main__":
    main()
