"""The tensors a model is made of, and in how many bytes each is kept."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Literal, assert_never

Kind = Literal["linear", "expert", "embedding", "head", "other"]
DType = Literal["float32", "float16", "bfloat16"]
DTYPE_BYTES: dict[DType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Weight:
    """One tensor of a model.

    Attributes:
        name: as `named_parameters` calls it inside its component.
        shape: of the tensor; (outputs, inputs) for a `linear`.
        kind: `linear` can be quantised and carry LoRA; `expert` holds the linears of all experts of a layer in one
            tensor (experts, outputs, inputs); `embedding` and `head` are the LLM's tables.
        is_buffer: moved and counted in memory, but not a parameter.
        learns: a stage that trains its part trains it too.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = "other"
    is_buffer: bool = False
    learns: bool = True

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True)
class Quantization:
    """How the linears of an LLM are stored in fewer bits.

    Attributes:
        kind: `nf4` (bitsandbytes), `gptq` (packed int32 with fp16 scales), `int8` (ours: one scale an output).
        bits: of a weight.
        group_size: weights that share a scale; of nf4 64, of int8 a whole row (0), as of gptq if it is below 1.
        double_quant: nf4 only: the scales are themselves kept in 8 bits, 256 to a scale of theirs.
        is_stored: the checkpoint holds quantised weights; else they are quantised while they are loaded.
    """

    kind: Literal["nf4", "gptq", "int8"]
    bits: int = 4
    group_size: int = 64
    double_quant: bool = True
    is_stored: bool = False


def count_parameters(weights: list[Weight]) -> int:
    """Sum the sizes of parameters; buffers are none."""
    return sum(weight.size for weight in weights if not weight.is_buffer)


def stored_bytes(weight: Weight, dtype: DType, quantization: Quantization | None = None) -> list[int]:
    """List the bytes of each buffer that keeps a weight, in the order in which they are made.

    Args:
        weight: which; a quantisation applies to its `linear`s only.
        dtype: of what is not quantised.
        quantization: of linears, None for none.

    Sources: QLoRA (arXiv 2305.14314) for nf4 with double quantisation, as `bitsandbytes.functional.quantize_4bit`
    allocates it; AutoGPTQ's `QuantLinear` for gptq.
    """
    if weight.is_buffer:
        return [weight.size * 8]  # torch keeps the integers of a position table as int64
    if quantization is None or weight.kind != "linear":
        return [weight.size * DTYPE_BYTES[dtype]]
    outputs, inputs = weight.shape
    match quantization.kind:
        case "nf4":
            scales = ceil(weight.size / quantization.group_size)
            code = [16 * 4]
            if not quantization.double_quant:
                return [ceil(weight.size / 2), scales * 4, *code]
            # The 8-bit scales, their own scales and mean; their code is one table for all unless a file brings it.
            nested_code = [256 * 4] if quantization.is_stored else []
            return [ceil(weight.size / 2), scales, ceil(scales / 256) * 4, *code, *nested_code, 4]
        case "gptq":
            groups = ceil(inputs / quantization.group_size) if quantization.group_size > 0 else 1
            packed = ceil(inputs * quantization.bits / 32) * outputs * 4
            zeros = groups * ceil(outputs * quantization.bits / 32) * 4
            return [packed, zeros, groups * outputs * 2, inputs * 4]
        case "int8":
            return [weight.size, outputs * 4]
        case _:
            assert_never(quantization.kind)


@dataclass(frozen=True)
class Adapters:
    """LoRA: two thin float32 matrices beside each linear it targets, or beside the linears of all experts of a layer.

    Attributes:
        rank: r.
        targets: module names, or what they end with after a dot; or one of peft's texts (`all-linear`, a regular
            expression).
        parameters: names of experts' tensors, of which the last parts count: what holds them is called otherwise in
            some families than here.
    """

    rank: int
    targets: tuple[str, ...] | str
    parameters: tuple[str, ...] = ()

    def fits(self, weight: Weight) -> bool:
        """Tell whether a weight carries an adapter, as peft decides it."""
        if weight.kind == "expert":
            return weight.name.rpartition(".")[2] in {name.rpartition(".")[2] for name in self.parameters}
        if weight.kind != "linear":
            return False
        module = weight.name.removesuffix(".weight")
        if self.targets == "all-linear":
            return True
        if isinstance(self.targets, str):
            import re

            return re.fullmatch(self.targets, module) is not None
        return any(f".{module}".endswith(f".{target}") for target in self.targets)

    def weights(self, weight: Weight) -> list[Weight]:
        """Return the two matrices beside `weight`: (rank, inputs) and (outputs, rank), of experts side by side."""
        *experts, outputs, inputs = weight.shape
        rank = prod(experts) * self.rank
        name = weight.name.removesuffix(".weight")
        return [
            Weight(f"{name}.lora_A.default.weight", (rank, inputs)),
            Weight(f"{name}.lora_B.default.weight", (outputs, rank)),
        ]


def layer_norm(name: str, width: int) -> list[Weight]:
    """List a LayerNorm's tensors."""
    return [Weight(f"{name}.weight", (width,)), Weight(f"{name}.bias", (width,))]


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> list[Weight]:
    """List a Linear's tensors."""
    weight = Weight(f"{name}.weight", (outputs, inputs), "linear")
    return [weight, Weight(f"{name}.bias", (outputs,))] if bias else [weight]
