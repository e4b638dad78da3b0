"""Checkpoints of the SALMONN family: the same logits as the published architecture, and nothing taken on trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import straight_line
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, WhisperFeatureExtractor

from stapes.assembly import load_model
from stapes.convert.folders import convert_beats, convert_salmonn
from stapes.convert.salmonn import load_salmonn
from stapes.errors import WeightsError
from stapes.inference import AudioLM

HIDDEN, INTERMEDIATE, SPEECH, SOUND, LLM = 48, 80, 32, 8, 64
BEATS_CFG = {
    "encoder_layers": 2,
    "encoder_embed_dim": SOUND,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2,
    "layer_norm_first": False,
    "conv_pos": 6,
    "conv_pos_groups": 2,
    "relative_position_embedding": True,
    "num_buckets": 16,
    "max_distance": 40,
    "gru_rel_pos": True,
    "deep_norm": True,
    "embed_dim": 4,
    "input_patch_size": 16,
}
# Outputs and inputs of the LLM's linears: 4 heads of 16, 2 of them for keys and values.
LINEARS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
CONFIG = {
    "model": {
        "llama_path": "meta-llama/Llama-3.2-3B-Instruct",
        "use_speech_Qformer": True,
        "window_level_Qformer": True,
        "second_per_window": 0.333333,
        "second_stride": 0.333333,
        "lora": True,
        "lora_rank": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.1,
        "prompt_template": "USER: {}\nASSISTANT:",
        "end_sym": "</s>",
    }
}
ASK = "Recognize the speech and give me the transcription."


class Files(NamedTuple):
    whisper: Path
    llm: Path
    beats: Path
    beats_checkpoint: dict[str, Any]


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    random = np.random.RandomState(seed)
    return {
        name: torch.from_numpy((random.standard_normal(shape) * (0.3 if len(shape) > 1 else 1)).astype(np.float32))
        for name, shape in shapes.items()
    }


def affine(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def beats_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (4, 1, 16, 16),
        **norm("layer_norm", 4),
        **affine("post_extract_proj", SOUND, 4),
        "encoder.pos_conv.0.weight_g": (1, 1, 6),
        "encoder.pos_conv.0.weight_v": (SOUND, 4, 6),
        "encoder.pos_conv.0.bias": (SOUND,),
        **norm("encoder.layer_norm", SOUND),
        "encoder.layers.0.self_attn.relative_attention_bias.weight": (16, 2),
    }
    for number in range(2):
        layer = f"encoder.layers.{number}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= affine(f"{layer}.self_attn.{name}", SOUND, SOUND)
        shapes |= {f"{layer}.self_attn.grep_a": (1, 2, 1, 1), **affine(f"{layer}.self_attn.grep_linear", 8, SOUND // 2)}
        shapes |= {**norm(f"{layer}.self_attn_layer_norm", SOUND), **norm(f"{layer}.final_layer_norm", SOUND)}
        shapes |= {**affine(f"{layer}.fc1", 12, SOUND), **affine(f"{layer}.fc2", SOUND, 12)}
    return shapes


def salmonn_shapes(sound: bool, targets: list[str]) -> dict[str, tuple[int, ...]]:
    """Lay out what a SALMONN of two layers with LoRA of rank 4 holds."""
    width = SPEECH + (SOUND if sound else 0)
    shapes: dict[str, tuple[int, ...]] = {"speech_query_tokens": (1, 1, HIDDEN), **norm("ln_speech", SPEECH)}
    if sound:
        shapes |= norm("ln_audio", SOUND)
    shapes |= norm("speech_Qformer.bert.embeddings.LayerNorm", HIDDEN)
    for number in range(2):
        layer = f"speech_Qformer.bert.encoder.layer.{number}"
        for name, seen in (("attention", HIDDEN), ("crossattention", width)):
            shapes |= affine(f"{layer}.{name}.self.query", HIDDEN, HIDDEN)
            shapes |= {**affine(f"{layer}.{name}.self.key", HIDDEN, seen)}
            shapes |= {**affine(f"{layer}.{name}.self.value", HIDDEN, seen)}
            shapes |= affine(f"{layer}.{name}.output.dense", HIDDEN, HIDDEN)
            shapes |= norm(f"{layer}.{name}.output.LayerNorm", HIDDEN)
        shapes |= affine(f"{layer}.intermediate_query.dense", INTERMEDIATE, HIDDEN)
        shapes |= affine(f"{layer}.output_query.dense", HIDDEN, INTERMEDIATE)
        shapes |= norm(f"{layer}.output_query.LayerNorm", HIDDEN)
    shapes |= affine("speech_llama_proj", LLM, HIDDEN)
    for number in range(2):
        for target in targets:
            out, into = next(size for name, size in LINEARS.items() if name.endswith(target))
            name = next(name for name in LINEARS if name.endswith(target))
            adapter = f"llama_model.base_model.model.model.layers.{number}.{name}"
            shapes |= {f"{adapter}.lora_A.default.weight": (4, into), f"{adapter}.lora_B.default.weight": (out, 4)}
    return shapes


@pytest.fixture(scope="module")
def files(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("salmonn")
    checkpoint = {"cfg": BEATS_CFG, "model": drawn(beats_shapes(), 1)}
    torch.save(checkpoint, folder / "beats.pt")
    convert_beats(folder / "beats.pt", folder / "beats")
    return Files(parts / "encoder", parts / "llm", folder / "beats", checkpoint)


def checkpoint(sound: bool = True, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> dict[str, Any]:
    return {
        "model": drawn(salmonn_shapes(sound, [*targets]), 2),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 3e-5}]},
        "config": CONFIG,
        "scaler": None,
        "epoch": 3,
    }


def saved(content: Any, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


def extras(files: Files) -> dict[str, Tensor]:
    """List what the original leaves in its files beside what was trained."""
    table = load_file(files.llm / "model.safetensors")["model.embed_tokens.weight"]
    layer = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    return {
        "speech_Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "beats.encoder.layers.1.self_attn.relative_attention_bias.weight": torch.zeros(16, 2),
        # A row more, for padding, and in float16.
        "llama_model.base_model.model.lm_head.weight": torch.cat([table, torch.ones(1, LLM)]).half(),
        f"{layer}.absmax": torch.zeros(4, dtype=torch.uint8),
        f"{layer}.quant_map": torch.zeros(16),
        f"{layer}.nested_absmax": torch.zeros(1),
        f"{layer}.nested_quant_map": torch.zeros(256),
        f"{layer}.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8),
        "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
    }


def straight_logits(files: Files, tensors: dict[str, Tensor], waveform: np.ndarray, sound: bool, alpha: int) -> Tensor:
    """Compute the original's logits for a prompt that asks `ASK` about a clip."""
    whisper = load_file(files.whisper / "model.safetensors")
    llm = load_file(files.llm / "model.safetensors")
    config = json.loads((files.llm / "config.json").read_text())
    mel = WhisperFeatureExtractor(feature_size=80)(waveform, sampling_rate=16_000, return_tensors="pt")
    speech = straight_line.whisper(mel["input_features"][0], whisper, num_heads=2)
    assert speech.shape == (1500, SPEECH)
    heard = None
    if sound:
        at_least_1_s = np.pad(waveform, (0, max(0, 16_000 - len(waveform))))
        heard = straight_line.beats(at_least_1_s, BEATS_CFG, files.beats_checkpoint["model"])
    audio = straight_line.audio_tokens(speech, heard, tensors)
    assert audio.shape == (88, LLM)
    tokenizer = AutoTokenizer.from_pretrained(files.llm)
    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("USER: <Speech>", f"</Speech> {ASK}\nASSISTANT:")
    )
    table = llm["model.embed_tokens.weight"]
    embeddings = straight_line.prompt_embeddings([tokenizer.bos_token_id, *before], audio, after, table)
    return straight_line.llama(embeddings, config, llm, tensors, alpha)


@torch.no_grad()
@pytest.mark.parametrize(
    ("sound", "targets", "duration_s"),
    [
        (True, ("q_proj", "v_proj"), 2.5),
        (True, ("q_proj", "v_proj"), 0.6),
        (False, tuple(name.rpartition(".")[2] for name in LINEARS), 1.7),
        (True, (), 30.0),
    ],
)
def test_the_logits_are_those_of_the_published_architecture(
    files: Files,
    tmp_path: Path,
    speech_like: Callable[[float, int], np.ndarray],
    sound: bool,
    targets: tuple[str, ...],
    duration_s: float,
) -> None:
    original = checkpoint(sound, targets)
    content = {**original, "model": {**original["model"], **extras(files)}}
    names = {"speech_encoder": str(files.whisper), "llm": str(files.llm), "sound_encoder": str(files.beats)}
    if not sound:
        del names["sound_encoder"]
    convert_salmonn(saved(content, tmp_path), tmp_path / "model", **names)
    model, processor = load_model(tmp_path / "model")
    waveform = speech_like(duration_s, 3)
    inputs = processor.prepare([waveform], [ASK])
    assert int((inputs["input_ids"] == processor.audio_token_id).sum()) == 88
    expected = straight_logits(files, original["model"], waveform, sound, CONFIG["model"]["lora_alpha"])
    found = model(**inputs).logits[0]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    assert float(expected.std()) > 1
