"""Causal LMs in a GGUF file → the folder layout of transformers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def convert_gguf(path: Path, folder: Path) -> str:
    """Write a quantized GGUF model as a dense one that `from_pretrained` reads.

    Args:
        path: the GGUF file.
        folder: where to write; must exist.

    Returns:
        The dtype the weights are stored in, float32: the smallest that holds values of quantized blocks (a float16
        scale times an integer, plus a float16 offset) without rounding.

    Raises:
        WeightsError: if transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        # Not AutoTokenizer: it would read the whole file once more to learn the architecture.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, NotImplementedError, struct.error) as error:
        raise WeightsError(f"{path}: transformers cannot read this GGUF file: {error}") from error
    _split_as_trained(tokenizer, path)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    _save_dense(model, folder)
    return "float32"


def _save_dense(model: PreTrainedModel, folder: Path) -> None:
    """Save weights that came from a GGUF file as if they had never been quantized."""
    # A model that a quantizer loaded refuses to be saved, though nothing in it is quantized any more.
    left_out = ("quantization_config", "_model_name_or_path")
    config = type(model.config).from_dict(
        {name: value for name, value in model.config.to_dict().items() if name not in left_out}
    )
    # GGUF keeps float32 numbers: 1e-5 comes back as 9.99999974e-06, and its shortest decimal is what was meant.
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.7g}")
    dense = type(model)(config)
    dense.load_state_dict(model.state_dict(), assign=True)
    dense.generation_config = model.generation_config
    dense.save_pretrained(folder)


def _split_as_trained(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Give the tokenizer the word splitting that the file names, where transformers does not know it yet.

    SmolLM2 splits off each digit before all else (`smollm` in llama.cpp). transformers 5.24 leaves that out, and then
    "a  12" (two spaces) falls into other tokens than those the model was trained on.
    """
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(path))
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
