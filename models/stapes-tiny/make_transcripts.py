"""Write down what whisper-base hears in the coffee orders, which have no transcripts, so that CTC can learn from them.

    python models/stapes-tiny/make_transcripts.py DATA OUT

DATA holds orders_train.jsonl; OUT gets orders_said.jsonl with one sample a clip. Whisper decodes greedily from 30 s, as
it was trained to; a clip in which it hears fewer than 3 or more than 26 words is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.progress import track
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from stapes.data.audio import SAMPLE_RATE_HZ
from stapes.data.sample import Sample, load_manifest, load_sample_audio, write_manifest
from stapes.weights import resolve

# Several times faster than float32 on a CPU with instructions for it, and far slower on one without.
DTYPE = torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


@torch.inference_mode()
def main(data: Path, out: Path) -> None:
    """Write the manifest."""
    folder = resolve("openai/whisper-base")
    whisper = WhisperForConditionalGeneration.from_pretrained(folder, dtype=DTYPE).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    clips = {sample.audio: sample for sample in load_manifest(data / "orders_train.jsonl")}
    said: list[Sample] = []
    for audio, sample in track(clips.items(), "listening", total=len(clips)):
        inputs = processor(load_sample_audio(sample), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        ids = whisper.generate(
            inputs.input_features.to(DTYPE), language="en", task="transcribe", num_beams=1, max_new_tokens=48
        )
        text = processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        if 3 <= len(text.split()) <= 26:
            said.append(Sample(f"said_{audio.stem}", audio, sample.duration_s, "asr", None, text))
    write_manifest(said, out / "orders_said.jsonl")
    print(f"{len(said)} of {len(clips)} clips")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
