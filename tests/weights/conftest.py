"""A Whisper in miniature as faster-whisper lays it out, written here byte by byte, and an environment of its own."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperConfig, WhisperForConditionalGeneration

DTYPE_CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]


class CT2File(NamedTuple):
    """What goes into a `model.bin`; a test changes a copy of it."""

    variables: dict[str, np.ndarray]
    aliases: dict[str, str]
    spec: str = "WhisperSpec"
    revision: int = 3
    version: int = 6

    def to_bytes(self) -> bytes:
        """Lay it out as CTranslate2 does: little-endian, strings with their length and a final NUL."""

        def text(value: str) -> bytes:
            raw = value.encode() + b"\0"
            return struct.pack("<H", len(raw)) + raw

        parts = [
            struct.pack("<I", self.version),
            text(self.spec),
            struct.pack("<II", self.revision, len(self.variables)),
        ]
        for name, array in self.variables.items():
            parts += [text(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
            parts += [struct.pack("<BI", DTYPE_CODES[array.dtype.name], array.nbytes), array.tobytes()]
        parts.append(struct.pack("<I", len(self.aliases)))
        for alias, name in self.aliases.items():
            parts += [text(alias), text(name)]
        return b"".join(parts)


def whisper_to_ct2(model: WhisperForConditionalGeneration) -> CT2File:
    """Name, stack and store the weights of a Whisper as CTranslate2's converter does, in float16."""
    state = {name.removeprefix("model."): tensor.half().numpy() for name, tensor in model.state_dict().items()}
    width, config = model.config.d_model, model.config
    variables: dict[str, np.ndarray] = {
        "decoder/activation": np.array(3, np.int8),
        "decoder/alibi": np.array(0, np.int8),
        "decoder/alignment_heads": np.array(1, np.int16),
        "decoder/alignment_layer": np.array(-1, np.int16),
        "decoder/embeddings/weight": state["decoder.embed_tokens.weight"],
        "decoder/num_heads": np.array(config.decoder_attention_heads, np.int16),
        "decoder/pre_norm": np.array(1, np.int8),
        "decoder/scale_embeddings": np.array(0, np.int8),
        "decoder/start_from_zero_embedding": np.array(0, np.int8),
        "encoder/num_heads": np.array(config.encoder_attention_heads, np.int16),
    }
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            variables[f"encoder/{conv}/{part}"] = state[f"encoder.{conv}.{part}"]

    def norm(theirs: str, ours: str) -> None:
        variables[f"{theirs}/gamma"], variables[f"{theirs}/beta"] = state[f"{ours}.weight"], state[f"{ours}.bias"]

    def linear(theirs: str, *ours: str) -> None:
        variables[f"{theirs}/weight"] = np.concatenate([state[f"{name}.weight"] for name in ours])
        zeros = np.zeros(width, np.float16)  # Whisper has no bias for keys
        variables[f"{theirs}/bias"] = np.concatenate([state.get(f"{name}.bias", zeros) for name in ours])

    for side, num_layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        variables[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for index in range(num_layers):
            theirs, ours = f"{side}/layer_{index}", f"{side}.layers.{index}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            linear(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{x}_proj" for x in "qkv"))
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                linear(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                linear(f"{theirs}/attention/linear_1", *(f"{ours}.encoder_attn.{x}_proj" for x in "kv"))
                linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
    return CT2File(variables, {"decoder/projection/weight": "decoder/embeddings/weight"})


@pytest.fixture(scope="session")
def tiny_whisper() -> WhisperForConditionalGeneration:
    """A Whisper with random weights that float16 holds exactly, and a vocabulary of bytes."""
    vocab_size = 256 + len(SPECIAL) + 1501
    config = WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=80,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=40,
        max_target_positions=64,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 256),  # type: ignore[arg-type]
        decoder_start_token_id=257,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.empty_like(parameter).normal_(std=0.2).half().float()
    return model


@pytest.fixture(scope="session")
def ct2_file(tiny_whisper: WhisperForConditionalGeneration) -> CT2File:
    """The tiny Whisper as CTranslate2 stores it."""
    return whisper_to_ct2(tiny_whisper)


@pytest.fixture
def write_source(ct2_file: CT2File) -> Callable[..., Path]:
    """Factory `(folder, **changes to CT2File) -> folder` that writes what faster-whisper downloads."""

    def write(folder: Path, **changes: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.bin").write_bytes(ct2_file._replace(**changes).to_bytes())
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(SPECIAL)
        tokenizer.save(str(folder / "tokenizer.json"))
        timestamps = [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
        (folder / "vocabulary.txt").write_text("\n".join([*alphabet, *SPECIAL, *timestamps]) + "\n", encoding="utf-8")
        settings = {"suppress_ids": [1, 2], "suppress_ids_begin": [220, 256], "alignment_heads": [[0, 1]]}
        (folder / "config.json").write_text(json.dumps({**settings, "lang_ids": []}), encoding="utf-8")
        return folder

    return write
