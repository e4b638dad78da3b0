"""Linear layers of the LLM in 4 bits (nf4, QLoRA: arXiv 2305.14314), through bitsandbytes.

Weights are stored as indices into 16 values, those a normal distribution makes equally likely, with one scale for each
64 of them; with `double_quant` the scales are stored in 8 bits. Layers compute with the weight they stand for, in the
dtype of the model. They do not learn: adapters beside them do. Embeddings, head, norms, encoder and connector stay as
they are; so do the fused experts of a mixture, which are no Linear layers.

`config.quantization_config` says that they are there, in the form in which transformers reads it: `from_pretrained`
loads them again from a complete folder.

Where we differ from bitsandbytes: on CPUs with AVX512-BF16 it repacks weights at the first use without gradient, with
scales in bfloat16, and has no gradient from then on. A stage that validates would stop learning: here they stay as
they are. Measured on CPUs only; CUDA is written, and was never tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from .modeling import StapesForConditionalGeneration

_KIND = "nf4"
# What of the whole model is never in 4 bits, for transformers: names from their beginning, or regular expressions.
_NEVER = ("speech_encoder", "sound_encoder", "connector", r".*\.lora_[AB]")


def check_installed() -> None:
    """Raise ValueError if bitsandbytes is not there."""
    if find_spec("bitsandbytes") is None:
        raise ValueError("4-bit weights need the package bitsandbytes; install it: `pip install bitsandbytes`")


def check_stored(quantization: dict[str, Any] | None) -> None:
    """Raise ValueError if weights are stored in a quantised form that is not read, by `config.json`."""
    if not quantization:
        return
    if quantization.get("quant_method") != "bitsandbytes" or not quantization.get("load_in_4bit"):
        method = quantization.get("quant_method", "an unnamed method")
        raise ValueError(
            f"its weights are stored quantised by {method}, of which bitsandbytes in 4 bits alone is read; take them "
            "in full precision, and `quantization` in a stage"
        )
    check_installed()


def is_4bit(module: nn.Module) -> bool:
    """Tell whether a layer's weights are in 4 bits, whoever quantised them."""
    return hasattr(module, "quant_state") and hasattr(module, "compute_dtype")


def layers_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Go through the 4-bit layers inside `module`, by name."""
    return ((name, layer) for name, layer in module.named_modules() if is_4bit(layer))


def num_values(tensor: Tensor) -> int:
    """Count the numbers that a tensor stands for: two a byte in 4 bits."""
    state = getattr(tensor, "quant_state", None)
    return tensor.numel() if state is None else math.prod(state.shape)


@torch.no_grad()
def swap_linears(language_model: PreTrainedModel, double_quant: bool) -> list[str]:
    """Quantise the Linear layers of an LLM, but for its head and its adapters, from their values in float32.

    Returns:
        the names of the layers that were replaced.

    Raises:
        ValueError: if bitsandbytes is not there, or a layer is in 4 bits already.
    """
    check_installed()
    from bitsandbytes.nn import Linear4bit, Params4bit

    if any(layers_of(language_model)):
        raise ValueError("the LLM's layers are in 4 bits already")
    head = language_model.get_output_embeddings()
    names = [
        name
        for name, module in language_model.named_modules()
        # Not its subclasses, whose forward may be another.
        if type(module) is nn.Linear and module is not head and ".lora_" not in name
    ]
    for name in names:
        linear = cast(nn.Linear, language_model.get_submodule(name))
        weight = linear.weight
        with torch.device("meta"):
            layer: Any = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=weight.dtype,
                compress_statistics=double_quant,
                quant_type=_KIND,
            )
        stored = cast(Any, Params4bit)(
            weight.detach().float(),
            requires_grad=False,
            compress_statistics=double_quant,
            quant_type=_KIND,
            module=layer,
        )
        layer.weight = stored.to(weight.device)  # this is what quantises
        layer.bias = linear.bias
        layer._is_hf_initialized = True  # else transformers draws the weights anew when the LLM joins another model
        language_model.set_submodule(name, layer.train(linear.training))
    language_model.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft asks
    stay_plain(language_model)
    compute_in(language_model, cast(nn.Embedding, language_model.get_input_embeddings()).weight.dtype)
    return names


def compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Let 4-bit layers inside `module` compute in `dtype`; their biases have it too."""
    for _, layer in layers_of(module):
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.to(dtype)
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
        layer.weight.quant_state.dtype = dtype


def stay_plain(module: nn.Module) -> None:
    """Keep 4-bit layers inside `module` from being repacked, see above; for those that others made."""
    for _, layer in layers_of(module):
        layer.support_avx512bf16_for_cpu = False


def settle(model: StapesForConditionalGeneration, dtype: torch.dtype) -> None:
    """Let an LLM's 4-bit layers, whoever quantised them, compute in the dtype of the model, and say which they are."""
    if not any(layers_of(model.language_model)):
        return
    # transformers notes the steps by which it read weights, to save them by the reverse; those for 4 bits have none.
    model.__dict__.pop("_weight_conversions", None)
    for parameter in model.parameters():
        # transformers leaves what a checkpoint in 4 bits keeps in full precision in the dtype it is stored in.
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    compute_in(model.language_model, dtype)
    describe(model)


def quantize_again(language_model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Quantise an LLM as the model was that `config` describes, if it is not stored so itself: to the same bits."""
    settings = settings_of(config)
    if settings and not any(layers_of(language_model)):
        swap_linears(language_model, settings["double_quant"])


def describe(model: StapesForConditionalGeneration) -> None:
    """Note in the model's configuration which layers are in 4 bits, or that there are none."""
    config: Any = model.config
    first = next(layers_of(model.language_model), None)
    for holder in (config, config.text_config):
        holder.__dict__.pop("quantization_config", None)
    if first is None:
        return
    weight, compute_dtype = first[1].weight, first[1].compute_dtype
    others = [
        f"language_model.{name}"
        for name, module in model.language_model.named_modules()
        if type(module) is nn.Linear and ".lora_" not in name
    ]
    config.quantization_config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": weight.quant_type,
        "bnb_4bit_use_double_quant": weight.compress_statistics,
        "bnb_4bit_compute_dtype": str(compute_dtype or torch.float32).removeprefix("torch."),
        "bnb_4bit_quant_storage": str(weight.quant_storage).removeprefix("torch."),
        "llm_int8_skip_modules": [*_NEVER, *others],
    }


def settings_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return `{"kind", "double_quant"}` of the 4-bit layers of the model that `config` describes, None without any."""
    described = getattr(config, "quantization_config", None)
    if described is None:
        return None
    described = described if isinstance(described, dict) else described.to_dict()
    return {"kind": described["bnb_4bit_quant_type"], "double_quant": described["bnb_4bit_use_double_quant"]}


@torch.no_grad()
def dequantize(layer: Any, delta: Tensor | None = None) -> nn.Linear:
    """Return the Linear layer in float32 that a 4-bit layer stands for, with `delta` added to its weight."""
    from bitsandbytes.functional import dequantize_4bit

    state = layer.weight.quant_state
    dtype, state.dtype = state.dtype, torch.float32
    try:
        weight = dequantize_4bit(layer.weight.data, state).float()
    finally:
        state.dtype = dtype
    with torch.device("meta"):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight = nn.Parameter(weight if delta is None else weight + delta.float(), requires_grad=False)
    linear.bias = layer.bias
    return linear.train(layer.training)


def dequantize_all(model: StapesForConditionalGeneration) -> int:
    """Replace the model's 4-bit layers by the Linear layers they stand for, and return how many there were."""
    layers = list(layers_of(model))
    for name, layer in layers:
        model.set_submodule(name, dequantize(layer))
    for holder in (model, model.language_model):
        for attribute in ("is_loaded_in_4bit", "is_quantized", "hf_quantizer", "quantization_method"):
            holder.__dict__.pop(attribute, None)
    describe(model)
    return len(layers)
