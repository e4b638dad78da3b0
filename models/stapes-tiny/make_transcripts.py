"""Write down what whisper-base hears in the coffee orders, which have no transcripts, so that CTC can learn from them.

    python models/stapes-tiny/make_transcripts.py DATA OUT

DATA holds orders_train.jsonl; OUT gets orders_said.jsonl with one sample a clip. Whisper decodes greedily from frames
of the clip's true length, on which it often repeats a sentence: repetitions are taken out, and a clip that leaves fewer
than 3 or more than 26 words is left out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration, WhisperTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from stapes.data.sample import Sample, load_manifest, load_sample_audio, write_manifest
from stapes.parts import load_encoders
from stapes.weights import resolve


def without_repetitions(text: str) -> str:
    """Keep each sentence once, and drop a last one that breaks off while repeating the first."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.?!])\s+", text.strip()):
        if sentence not in kept:
            kept.append(sentence)
    if len(kept) > 1 and kept[0].startswith(kept[-1][:12]):
        kept.pop()
    return " ".join(kept)


@torch.inference_mode()
def main(data: Path, out: Path) -> None:
    """Write the manifest."""
    folder = resolve("openai/whisper-base")
    whisper = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    encoder, _, extractor = load_encoders({"speech_encoder": "openai/whisper-base"}, None, torch.float32)
    encoder.eval()
    tokenizer = WhisperTokenizerFast.from_pretrained(folder)
    clips = {sample.audio: sample for sample in load_manifest(data / "orders_train.jsonl")}
    said: list[Sample] = []
    for audio, sample in clips.items():
        features = extractor([load_sample_audio(sample)])["input_features"]
        frames, _ = encoder(features)
        ids = whisper.generate(
            encoder_outputs=BaseModelOutput(frames), language="en", task="transcribe", num_beams=1, max_new_tokens=48
        )
        text = without_repetitions(tokenizer.batch_decode(ids, skip_special_tokens=True)[0])
        if 3 <= len(text.split()) <= 26:
            said.append(Sample(f"said_{audio.stem}", audio, sample.duration_s, "asr", None, text))
    write_manifest(said, out / "orders_said.jsonl")
    print(f"{len(said)} of {len(clips)} clips")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
