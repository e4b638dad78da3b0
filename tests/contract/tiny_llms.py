"""LLM folders as the Hub holds them, in miniature: each family's real configuration, tokens and chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
_MIXTURE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_THINKING = _CHATML.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_R1 = (
    "{{ bos_token }}<｜User｜>{{ messages[0].content }}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
_GEMMA = "{{ bos_token }}<start_of_turn>user\n{{ messages[0].content }}<end_of_turn>\n<start_of_turn>model{{ '\\n' }}"
_OLMOE = "{{ bos_token }}<|user|>\n{{ messages[0].content }}\n<|assistant|>{{ '\\n' }}"
_GRANITE = (
    "<|start_of_role|>user<|end_of_role|>{{ messages[0].content }}<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>"
)
_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_PADS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|fim_pad|>")
_LLAMA_TOKENS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
)
_R1_TOKENS = (
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>",
    "<think>",
    "</think>",
)
_R1_ROLES = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜end▁of▁sentence｜>",
}
_CODE_TOKENS = ("<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<jupyter_code>", "<empty_output>")


@dataclass(frozen=True)
class TinyLLM:
    """What a family's folders hold, and what is to be made of it.

    Attributes:
        family: its name in the table.
        model_type, sizes: of its configuration.
        tokens: special tokens, in the order of their ids, which begin at 256.
        roles: what its tokenizer says of them.
        template: for chats.
        stated: end symbols by its generation settings.
        audio, pad, end: the tokens that serve as such in a chat.
        ends: all that end an answer.
        chat, plain: prompts; `{a}` stands for the audio token.
        extra_rows: of the table, beyond the tokenizer's tokens.
    """

    family: str
    model_type: str
    tokens: tuple[str, ...]
    roles: dict[str, str]
    template: str
    stated: tuple[str, ...]
    audio: str
    pad: str
    end: str
    ends: tuple[str, ...]
    chat: str
    plain: str
    sizes: dict[str, Any] = field(default_factory=dict)
    extra_rows: int = 0


_PLAIN = "USER: <Speech>{a}</Speech> Hi?\nASSISTANT:"
_CHATML_PROMPT = "<|im_start|>user\n{a}\nHi?<|im_end|>\n<|im_start|>assistant\n"
_QWEN: dict[str, Any] = {
    "roles": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "template": _CHATML,
    "stated": ("<|im_end|>", "<|endoftext|>"),
    "pad": "<|endoftext|>",
    "end": "<|im_end|>",
    "ends": ("<|endoftext|>", "<|im_end|>"),
    "chat": _CHATML_PROMPT,
    "plain": _PLAIN,
}
_QWEN3: dict[str, Any] = {**_QWEN, "template": _THINKING, "chat": _CHATML_PROMPT + "<think>\n\n</think>\n\n"}
_R1_LIKE: dict[str, Any] = {
    "family": "DeepSeek-R1-Distill",
    "roles": _R1_ROLES,
    "template": _R1,
    "stated": ("<｜end▁of▁sentence｜>",),
    "end": "<｜end▁of▁sentence｜>",
    "ends": ("<｜end▁of▁sentence｜>",),
    "chat": "<｜begin▁of▁sentence｜><｜User｜>{a}\nHi?<｜Assistant｜><think>\n\n</think>\n\n",
    "plain": "<｜begin▁of▁sentence｜>" + _PLAIN,
}

TINY_LLMS = {
    "llama-3.2-instruct": TinyLLM(
        family="Llama 3",
        model_type="llama",
        tokens=_LLAMA_TOKENS,
        roles={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        template=_LLAMA,
        stated=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        audio="<|reserved_special_token_0|>",
        pad="<|finetune_right_pad_id|>",
        end="<|eot_id|>",
        ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        chat=(
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{a}\nHi?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        plain="<|begin_of_text|>" + _PLAIN,
        sizes={"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    "qwen2.5-instruct": TinyLLM(
        family="Qwen2.5",
        model_type="qwen2",
        tokens=(*_QWEN_TOKENS, *_QWEN_PADS),
        audio="<|vision_pad|>",
        sizes={"tie_word_embeddings": True},
        **_QWEN,
    ),
    # Its tokenizer ends a text, not a turn.
    "qwen2.5-base": TinyLLM(
        family="Qwen2.5",
        model_type="qwen2",
        tokens=(*_QWEN_TOKENS, *_QWEN_PADS),
        audio="<|vision_pad|>",
        **{
            **_QWEN,
            "roles": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
            "stated": ("<|endoftext|>",),
        },
    ),
    "qwen3": TinyLLM(
        family="Qwen3",
        model_type="qwen3",
        tokens=(*_QWEN_TOKENS, *_QWEN_PADS, "<think>", "</think>"),
        audio="<|vision_pad|>",
        sizes={"head_dim": 16},
        **_QWEN3,
    ),
    "gemma-3-it": TinyLLM(
        family="Gemma 3",
        model_type="gemma3_text",
        tokens=("<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>"),
        roles={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        template=_GEMMA,
        stated=("<eos>", "<end_of_turn>"),
        audio="<unused0>",
        pad="<pad>",
        end="<end_of_turn>",
        ends=("<eos>", "<end_of_turn>"),
        chat="<bos><start_of_turn>user\n{a}\nHi?<end_of_turn>\n<start_of_turn>model\n",
        plain="<bos>" + _PLAIN,
        sizes={"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "smollm2-instruct": TinyLLM(
        family="SmolLM2",
        model_type="llama",
        tokens=(*_QWEN_TOKENS, *_CODE_TOKENS),
        roles={
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
        },
        template=_CHATML,
        stated=("<|im_end|>",),
        audio="<gh_stars>",
        pad="<issue_comment>",
        end="<|im_end|>",
        ends=("<|endoftext|>", "<|im_end|>"),
        chat=_CHATML_PROMPT,
        plain="<|im_start|>" + _PLAIN,
        sizes={"tie_word_embeddings": True},
    ),
    "r1-distill-qwen": TinyLLM(
        model_type="qwen2",
        tokens=(*_R1_TOKENS, *_QWEN_PADS),
        audio="<|vision_pad|>",
        pad="<|image_pad|>",
        **_R1_LIKE,
    ),
    "r1-distill-llama": TinyLLM(
        model_type="llama",
        tokens=(*_LLAMA_TOKENS, *_R1_TOKENS),
        audio="<|reserved_special_token_0|>",
        pad="<|finetune_right_pad_id|>",
        **_R1_LIKE,
    ),
    "olmoe-instruct": TinyLLM(
        family="OLMoE",
        model_type="olmoe",
        tokens=("<|endoftext|>", "<|padding|>", "|||EMAIL_ADDRESS|||", "|||PHONE_NUMBER|||", "|||IP_ADDRESS|||"),
        roles={"bos_token": "|||IP_ADDRESS|||", "eos_token": "|||IP_ADDRESS|||", "pad_token": "<|padding|>"},
        template=_OLMOE,
        stated=("|||IP_ADDRESS|||",),
        audio="|||EMAIL_ADDRESS|||",
        pad="<|padding|>",
        end="|||IP_ADDRESS|||",
        ends=("|||IP_ADDRESS|||",),
        chat="|||IP_ADDRESS|||<|user|>\n{a}\nHi?\n<|assistant|>\n",
        plain="|||IP_ADDRESS|||" + _PLAIN,
        sizes={"num_experts": 4, "num_experts_per_tok": 2},
    ),
    # Older than tokens for code and images: a row of the table that no token has is for audio.
    "qwen1.5-moe-chat": TinyLLM(
        family="Qwen-MoE",
        model_type="qwen2_moe",
        tokens=_QWEN_TOKENS,
        audio="<|audio_pad|>",
        sizes={**_MIXTURE, "shared_expert_intermediate_size": 48},
        extra_rows=5,
        **_QWEN,
    ),
    "qwen3-moe": TinyLLM(
        family="Qwen3-MoE",
        model_type="qwen3_moe",
        tokens=(*_QWEN_TOKENS, *_QWEN_PADS, "<think>", "</think>"),
        audio="<|vision_pad|>",
        sizes=_MIXTURE,
        **_QWEN3,
    ),
    "granite-moe-instruct": TinyLLM(
        family="GraniteMoE",
        model_type="granitemoe",
        tokens=("<|end_of_text|>", "<fim_pad>", *_CODE_TOKENS, "<|start_of_role|>", "<|end_of_role|>"),
        roles=dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|end_of_text|>"),
        template=_GRANITE,
        stated=("<|end_of_text|>",),
        audio="<gh_stars>",
        pad="<fim_pad>",
        end="<|end_of_text|>",
        ends=("<|end_of_text|>",),
        chat=("<|start_of_role|>user<|end_of_role|>{a}\nHi?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"),
        plain="<|end_of_text|>" + _PLAIN,
        sizes={"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}


def tiny_tokenizer_of(llm: TinyLLM) -> PreTrainedTokenizerFast:
    """Bytes and the family's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(llm.tokens))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=llm.template, **llm.roles)


def save_tiny_llm(llm: TinyLLM, folder: Path) -> None:
    """Write a random LLM of the family."""
    tokenizer = tiny_tokenizer_of(llm)
    ids = {role: tokenizer.convert_tokens_to_ids(token) for role, token in llm.roles.items() if role != "unk_token"}
    stated = [tokenizer.convert_tokens_to_ids(token) for token in llm.stated]
    config = AutoConfig.for_model(
        llm.model_type,
        vocab_size=len(tokenizer) + llm.extra_rows,
        bos_token_id=ids.get("bos_token"),
        pad_token_id=ids.get("pad_token"),
        eos_token_id=stated[0] if len(stated) == 1 else stated,
        **{**_SIZES, **llm.sizes},
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    # The row of the padding token begins as zeros: where that is the end symbol and the head is tied, it would stay so.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
