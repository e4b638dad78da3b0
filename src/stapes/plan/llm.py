"""Shapes of causal LLMs, read from the configuration files of the families that transformers builds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import WeightsError
from .shapes import Quantization, Weight, linear


@dataclass(frozen=True)
class _Family:
    """What a model type has that its configuration file need not say.

    Attributes:
        tied: default of `tie_word_embeddings`.
        qkv_bias: default for the bias of query, key and value.
        qk_norm: norms of query and key: none, one a head, or one over all heads.
        num_norms: norms a layer, those of query and key aside.
        experts: how the checkpoint keeps experts: none, one module each, or one tensor for all.
        head_width: default of `head_dim`, where it is not hidden_size / num_attention_heads.
        scales_embeddings: the table is of a class of its own, which multiplies what is looked up.
    """

    tied: bool = False
    qkv_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    num_norms: int = 2
    experts: Literal["none", "modules", "tensor"] = "none"
    head_width: int | None = None
    scales_embeddings: bool = False


FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "granite": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm="head", head_width=128),
    "gemma": _Family(tied=True, head_width=256, scales_embeddings=True),
    "gemma2": _Family(tied=True, num_norms=4, head_width=256, scales_embeddings=True),
    "gemma3_text": _Family(tied=True, num_norms=4, qk_norm="head", head_width=256, scales_embeddings=True),
    "olmoe": _Family(qk_norm="all", experts="modules"),
    "qwen2_moe": _Family(qkv_bias=True, experts="modules"),
    "granitemoe": _Family(experts="tensor"),
}
"""Model types whose shape is known: their layers were compared with those transformers builds (tests/plan)."""


@dataclass(frozen=True)
class LLMShape:
    """A causal LLM.

    Attributes:
        model_type: key of `FAMILIES`.
        width: D_llm.
        num_layers, num_heads, num_kv_heads, head_width, ffn_width: of the transformer; of a mixture of experts,
            `ffn_width` is that of one expert.
        vocab_size: rows of the embedding table.
        tokenizer_length: tokens the tokenizer knows, fewer than `vocab_size` where the table is padded.
        tied: head and embeddings are one tensor.
        qkv_bias, out_bias, mlp_bias: which linears have a bias.
        num_experts, experts_per_token, shared_ffn_width: of a mixture of experts; 0 in a dense model.
        logits_capped: the head's output passes through a tanh (Gemma 2).
        quantization: how the checkpoint itself stores its linears.
    """

    model_type: str
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    tokenizer_length: int
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    shared_ffn_width: int = 0
    logits_capped: bool = False
    quantization: Quantization | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> LLMShape:
        """Read the shape from an LLM's config.json; `tokenizer_length` beside it if it is known.

        Raises:
            WeightsError: if the family is none that we know; `name` is for the message.
        """
        model_type = config.get("model_type", "")
        if model_type not in FAMILIES:
            near = difflib.get_close_matches(model_type, FAMILIES, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise WeightsError(
                f"{name}: the planner does not know the layers of a `{model_type}` model{hint}; "
                f"it knows {', '.join(FAMILIES)}"
            )
        family = FAMILIES[model_type]
        num_heads = config["num_attention_heads"]
        num_experts = config.get("num_experts") or config.get("num_local_experts") or 0
        return cls(
            model_type=model_type,
            width=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_width=config.get("head_dim") or family.head_width or config["hidden_size"] // num_heads,
            ffn_width=config.get("moe_intermediate_size") or config["intermediate_size"],
            vocab_size=config["vocab_size"],
            tokenizer_length=config.get("tokenizer_length") or config["vocab_size"],
            tied=config.get("tie_word_embeddings", family.tied),
            qkv_bias=config.get("qkv_bias", config.get("attention_bias", family.qkv_bias)) or family.qkv_bias,
            out_bias=bool(config.get("attention_bias", False)) and not family.qkv_bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            num_experts=num_experts,
            experts_per_token=config.get("num_experts_per_tok", 0) if num_experts else 0,
            shared_ffn_width=config.get("shared_expert_intermediate_size", 0) if num_experts else 0,
            logits_capped=bool(config.get("final_logit_softcapping")),
            quantization=_read_quantization(config.get("quantization_config"), name),
        )

    @property
    def family(self) -> _Family:
        """What the model type implies."""
        return FAMILIES[self.model_type]

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_width

    def kv_cache_bytes(self, num_tokens: int, value_bytes: int) -> int:
        """Bytes of keys and values of `num_tokens` tokens in all layers."""
        return 2 * self.num_layers * self.kv_width * num_tokens * value_bytes

    def weights(self, *, split_experts: bool = False, vocab_size: int | None = None) -> list[Weight]:
        """List the tensors in the order in which a model is moved to a device.

        Args:
            split_experts: list each expert's linears by themselves, as transformers kept them before version 5.
            vocab_size: rows of embeddings and head, if they were resized.
        """
        rows = vocab_size or self.vocab_size
        listed = [Weight("model.embed_tokens.weight", (rows, self.width), "embedding")]
        for layer in range(self.num_layers):
            listed += self.layer_weights(layer, split_experts=split_experts)
        listed.append(Weight("model.norm.weight", (self.width,)))
        return [*listed, *([] if self.tied else [Weight("lm_head.weight", (rows, self.width), "head")])]

    def layer_weights(self, layer: int, *, split_experts: bool = False) -> list[Weight]:
        """List the tensors of one decoder layer."""
        at = f"model.layers.{layer}"
        listed = [
            *linear(f"{at}.self_attn.q_proj", self.width, self.query_width, self.qkv_bias),
            *linear(f"{at}.self_attn.k_proj", self.width, self.kv_width, self.qkv_bias),
            *linear(f"{at}.self_attn.v_proj", self.width, self.kv_width, self.qkv_bias),
            *linear(f"{at}.self_attn.o_proj", self.query_width, self.width, self.out_bias),
        ]
        match self.family.qk_norm:
            case "head":
                widths = (self.head_width, self.head_width)
            case "all":
                widths = (self.query_width, self.kv_width)
            case "none":
                widths = ()
        listed += [
            Weight(f"{at}.self_attn.{name}_norm.weight", (width,)) for name, width in zip("qk", widths, strict=False)
        ]
        listed += self._experts(f"{at}.mlp", split_experts) if self.num_experts else self._mlp(f"{at}.mlp")
        return [*listed, *(Weight(f"{at}.norm_{i}.weight", (self.width,)) for i in range(self.family.num_norms))]

    def _mlp(self, at: str, width: int | None = None) -> list[Weight]:
        width = width or self.ffn_width
        return [
            *linear(f"{at}.gate_proj", self.width, width, self.mlp_bias),
            *linear(f"{at}.up_proj", self.width, width, self.mlp_bias),
            *linear(f"{at}.down_proj", width, self.width, self.mlp_bias),
        ]

    def _experts(self, at: str, split: bool) -> list[Weight]:
        listed = [Weight(f"{at}.gate.weight", (self.num_experts, self.width))]
        if split and self.family.experts == "modules":
            for expert in range(self.num_experts):
                listed += self._mlp(f"{at}.experts.{expert}")
        else:
            listed += [
                Weight(f"{at}.experts.gate_up_proj", (self.num_experts, 2 * self.ffn_width, self.width), "expert"),
                Weight(f"{at}.experts.down_proj", (self.num_experts, self.width, self.ffn_width), "expert"),
            ]
        if self.shared_ffn_width:
            listed += self._mlp(f"{at}.shared_expert", self.shared_ffn_width)
            listed.append(Weight(f"{at}.shared_expert_gate.weight", (1, self.width)))
        return listed


def _read_quantization(config: Mapping[str, Any] | None, name: str) -> Quantization | None:
    """Read how a checkpoint stores its linears from `quantization_config`."""
    match config:
        case None:
            return None
        case {"quant_method": "gptq", "bits": int(bits), "group_size": int(group_size)}:
            return Quantization("gptq", bits=bits, group_size=group_size, double_quant=False, is_stored=True)
        case {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}:
            double_quant = config.get("bnb_4bit_use_double_quant", False)
            return Quantization("nf4", double_quant=double_quant, is_stored=True)
        case _:
            method = config.get("quant_method", "unknown")
            raise WeightsError(
                f"{name}: its weights are stored by `{method}`; the planner knows gptq and bitsandbytes' nf4"
            )
