"""Linear layers with int8 weights, for CPUs; an embedding table that is tied to one shares its weights.

A weight is stored as int8 with one float scale per output channel. An input row (a token, a frame) is divided by its
own absolute maximum and written as two digits in base 128, each an integer in [-64, 64]; both digits go through the
same int8 kernel, so that a row keeps 14 bits. Why two digits and not one, as dynamic quantisation does (figures:
SmolLM2-135M and whisper-base, `benchmarks/int8.py` measures them again):

- One digit loses more in the activations than the weights do: outliers leave the ordinary values of a row few levels.
  Against float32 the LLM's predictions move by 0.06 nats (KL) with one digit and by 0.005 with two.
- Rounding turns noise of 1e-7 into a whole level. With one digit, the noise that another batch size brings into
  attention moved logits by up to 2.7 and changed greedy tokens; with two by 0.06 on the same texts, and by up to 0.13
  on 48 clips of the tiny run, which `rounding.rounding_margin` allows for.
- The kernel (fbgemm) adds pairs of products in 16 bits on CPUs without VNNI, and saturates: 64-levels times weights in
  [-127, 127] stay below (2·128·127 < 2^15), where 8-bit activations would leave the weights 7 bits.
- On one core with VNNI an encoder of 10 s, a prefill of 90 tokens and a cached step are 2.0, 2.6 and 2.0 times as fast
  as in float32. One digit would give 2.7, 4.0 and 2.4; three would move logits by 0.001 only, and give 1.5, 2.0, 1.9.

Each row is treated alone and all sums are exact integers: a row's result is the same bits whatever else is in the
batch. Where the kernel is missing (other devices, other CPUs) the same integers are summed in float32.
"""

from __future__ import annotations

import difflib
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .modeling import StapesForConditionalGeneration

# The connector is small, and all that the LLM hears goes through it.
_PARTS = ("speech_encoder.", "sound_encoder.", "language_model.")

_WEIGHT_MAX = 127
_DIGIT_MAX = 64
_BASE = 128
_SMALLEST = 1e-30  # what is smaller is taken for zero: its reciprocal would be infinite
_ENGINES_WITH_KERNEL = ("x86", "fbgemm")

# Layers pack themselves at their first use, which may be in several threads at once.
_packing = threading.Lock()


class Int8Linear(nn.Module):
    """A Linear layer with int8 weights; `weight * scale[:, None]` is the float weight it stands for.

    On a CPU the int8 weights are held once: at the first use they move into the kernel's own order, and `weight` is a
    placeholder on the meta device from then on. `state_dict`, `to`, pickle and deepcopy give or take the plain order.
    A layer with `keeps_rows` holds both, for an `Int8Embedding` that looks rows up.

    State dict:
        weight: (out_features, in_features), int8 in [-127, 127].
        scale: (out_features,), float32, whatever dtype the model is cast to.
        bias: (out_features,), the model's dtype, if there is one.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        """Make a layer of zeros, to be loaded."""
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.keeps_rows = False
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self._packed: Any = None

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """Quantise a Linear layer, which is left as it is; the bias is shared. On the meta device only shapes count."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.bias = linear.bias
        weight = linear.weight.float()
        peaks = weight.abs().amax(dim=1)
        layer.scale = torch.where(peaks > _SMALLEST, peaks / _WEIGHT_MAX, torch.ones_like(peaks))
        layer.weight = (weight / layer.scale[:, None]).round_().to(torch.int8)
        return layer.train(linear.training)

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply rows (…, in_features) with the weights: (…, out_features) in the rows' dtype.

        Gradients reach the rows as if nothing was rounded (straight through), and the bias; the weights do not learn.
        """
        flat = rows.reshape(-1, self.in_features).float()
        if torch.is_grad_enabled() and flat.requires_grad:
            product = cast(Tensor, _StraightThrough.apply(flat, self))
        else:
            product = self.multiply(flat)
        if self.bias is not None:
            product = product.add_(self.bias)
        return product.to(rows.dtype).view(*rows.shape[:-1], self.out_features)

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply rows (M, in_features), float32, with the weights, without bias: (M, out_features)."""
        peaks = rows.abs().amax(dim=1, keepdim=True).clamp_min_(_SMALLEST)
        digits = rows.new_empty(2, *rows.shape)
        # Rounded here and not by the kernel, whose own rounding of halves is not the same in all its branches.
        fine = torch.mul(rows, _DIGIT_MAX / peaks, out=digits[1])
        coarse = torch.round(fine, out=digits[0])
        fine.sub_(coarse).mul_(_BASE).round_()
        products = self._multiply_integers(digits.flatten(0, 1)).view(2, -1, self.out_features)
        # Powers of two: this is exact, fused or not, so that a value does not depend on its place in memory.
        product = torch.add(products[1], products[0], alpha=_BASE)
        return product.mul_(peaks.mul_(1 / (_DIGIT_MAX * _BASE)))

    def _multiply_integers(self, digits: Tensor) -> Tensor:
        """Multiply whole numbers in [-64, 64], stored as float32 (R, in_features): (R, out_features), times `scale`."""
        packed = self._packed if self._packed is not None else self._pack()
        if packed is not None:
            kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
            return kernel(digits, 1.0, _DIGIT_MAX, packed)
        # Sums below 2^24 are exact in float32, so this is the kernel's result bit by bit up to 2000 inputs, and longer
        # sums reach that only if nearly all products are at their maximum.
        with torch.autocast(digits.device.type, enabled=False):
            return nn.functional.linear(digits, self.weight.float()).mul_(self.scale)

    def dequantize(self) -> Tensor:
        """Return the float32 weight (out_features, in_features) that the layer stands for."""
        return self.int_weight().float() * self.scale[:, None]

    def int_weight(self) -> Tensor:
        """Return the int8 weight (out_features, in_features), packed or not."""
        packed = self._packed
        if packed is None or self.keeps_rows:
            return self.weight
        with torch.inference_mode(mode=False):
            weight, _ = torch.ops.quantized.linear_unpack(packed)
            return weight.int_repr()

    def _pack(self) -> Any:
        """Move the weights into the kernel's order, which takes the place of the plain one; None without a kernel."""
        with _packing, torch.inference_mode(mode=False), torch.no_grad():
            if self._packed is None and self.weight.device.type == "cpu" and _has_kernel():
                with warnings.catch_warnings():
                    # torch means to drop its quantised tensors; the stored form does not depend on them.
                    warnings.filterwarnings("ignore", message=r"(?s).*quantized tensor creation functions")
                    zeros = torch.zeros(self.out_features, dtype=torch.int64)
                    # Not `quantize_per_channel`, which wants a float32 copy: memory would peak above float32's.
                    weight = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
                self._packed = torch.ops.quantized.linear_prepack(weight, None)
                if not self.keeps_rows:
                    self.weight = torch.empty_like(self.weight, device="meta")
            return self._packed

    def _unpack(self) -> None:
        with _packing:
            self.weight, self._packed = self.int_weight(), None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        self._unpack()
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:
            # `model.to(torch.bfloat16)` means the weights; the scales would lose what their 8 bits can say.
            self.scale = scale.to(self.scale.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.int_weight()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": {**self._buffers, "weight": self.int_weight()}, "_packed": None}

    def extra_repr(self) -> str:
        """Describe the shape as nn.Linear does."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(nn.Module):
    """The embedding table of an LLM whose head is tied to it: rows of the head's int8 weights, no state of its own."""

    like: Tensor

    def __init__(self, head: Int8Linear) -> None:
        super().__init__()
        head.keeps_rows = True
        # In a list, so that the head is not registered a second time.
        self._head = [head]
        # Follows the model's dtype, which the embeddings have to have.
        self.register_buffer("like", torch.empty(0), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up (…) ids: (…, embedding_dim)."""
        head = self._head[0]
        rows = nn.functional.embedding(input_ids, head.weight).float()
        return rows.mul_(nn.functional.embedding(input_ids, head.scale[:, None])).to(self.like.dtype)

    def extra_repr(self) -> str:
        """Describe the shape as nn.Embedding does."""
        return f"{self._head[0].out_features}, {self._head[0].in_features}, shared with the head"


class _StraightThrough(torch.autograd.Function):
    """`Int8Linear.multiply`, with the gradient of the Linear layer it stands for."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: Int8Linear) -> Tensor:
        ctx.layer = layer
        return layer.multiply(rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] @ ctx.layer.dequantize(), None


def swap_linears(model: StapesForConditionalGeneration, skip: Sequence[str]) -> list[str]:
    """Replace the Linear layers of the encoders and the LLM, not of the connector, by int8 ones.

    The LLM's head goes with them, for it is read whole for each token. A table of embeddings that is tied to it becomes
    an `Int8Embedding`: they stay one. (Such a table of another class than nn.Embedding keeps both in float.)

    Args:
        model: changed in place; not if an error is raised.
        skip: layers whose name contains one of these texts stay as they are, e.g. `lm_head` or `layers.0.`.

    Returns:
        the names of the layers that were replaced.

    Raises:
        ValueError: if there are LoRA adapters, a text of `skip` is in no module's name, or no layer is left to replace.
    """
    if model.config.lora is not None or model.lora_layers():
        raise ValueError("the LLM has LoRA adapters, which int8 weights cannot carry; merge them first (`merge_lora`)")
    modules = dict(model.named_modules())
    _check_skip(skip, modules)
    kept = {name for name in modules if any(text in name for text in skip)}
    language_model = model.language_model
    table, head = (_name_of(modules, find()) for find in (model.get_input_embeddings, model.get_output_embeddings))
    is_tied = bool(language_model.config.tie_word_embeddings)
    if is_tied and (table in kept or type(modules[table]) is not nn.Embedding):
        kept.add(head)
    names = [
        name
        for name, module in modules.items()
        # Not its subclasses, whose forward may be another.
        if type(module) is nn.Linear and name.startswith(_PARTS) and name not in kept
    ]
    if not names:
        raise ValueError(f"skip: {', '.join(skip)} leaves no Linear layer to store as int8")
    for name in names:
        model.set_submodule(name, Int8Linear.from_linear(cast(nn.Linear, modules.pop(name))))
    if is_tied and head in names:
        model.set_submodule(table, Int8Embedding(cast(Int8Linear, model.get_submodule(head))))
        # transformers would tie parameters; these are buffers, and tied already.
        language_model._tied_weights_keys = {}
        model.all_tied_weights_keys = language_model.all_tied_weights_keys = {}
    return names


def _check_skip(skip: Sequence[str], names: Collection[str]) -> None:
    for text in skip:
        if not any(text in name for name in names):
            known = sorted({piece for name in names for piece in name.split(".")})
            near = difflib.get_close_matches(text, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"skip: no module's name contains `{text}`{hint}")


def _name_of(modules: Mapping[str, nn.Module], wanted: nn.Module | None) -> str:
    return next((name for name, module in modules.items() if module is wanted), "")


def _has_kernel() -> bool:
    return torch.backends.quantized.engine in _ENGINES_WITH_KERNEL
