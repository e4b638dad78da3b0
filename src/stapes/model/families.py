"""LLM families: the tokens, prompts and LoRA targets of each, in one table.

A family is told by its architecture (`model_type`) and by tokens that its tokenizer has and its relatives' lack: a
distilled DeepSeek-R1 is a Qwen2 or a Llama by its layers, but not by its tokens. What no family claims is treated by
what its tokenizer says of itself, and by names that many tokenizers give to tokens they hold in reserve.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

PLAIN_PROMPT = "USER: <Speech>{audio}</Speech> {instruction}\nASSISTANT:"
"""SALMONN's, of which the tags are plain text."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_SHARED_EXPERT = tuple(f"shared_expert.{name}" for name in _MLP)


@dataclass(frozen=True)
class Family:
    """What is to be known of a family of LLMs.

    Attributes:
        name: for people.
        model_types: of `config.json`.
        marks: tokens of which its tokenizers have every one; of several families that fit the first counts.
        bos: what a plain prompt begins with if the tokenizer has it, or nothing; None for the start symbol that the
            tokenizer names. A chat template states its own.
        ends: what ends an answer beside the end symbol that the tokenizer names, the end of a turn of chat first; those
            the tokenizer lacks do not count.
        pad: meant for padding, where the tokenizer names no token or its end symbol.
        reserved: tokens held in reserve, as regular expressions, the best for audio first.
        adds_audio: where a vocabulary has no token in reserve but the LLM's table more rows than the vocabulary tokens:
            the name under which one of these rows is for audio.
        thinks: its chat template opens a chain of thought, which is closed at once: the answer follows the prompt.
        linears: all Linear layers of a block, for `target_modules`; of a mixture without its router, which is none.
        experts: the fused 3-D parameters of a mixture's experts, for peft's `target_parameters`.
    """

    name: str
    model_types: tuple[str, ...]
    marks: tuple[str, ...]
    bos: str | None
    ends: tuple[str, ...]
    reserved: tuple[str, ...]
    pad: str | None = None
    adds_audio: str | None = None
    thinks: bool = False
    linears: tuple[str, ...] = (*_ATTENTION, *_MLP)
    experts: tuple[str, ...] = ()


_QWEN_AUDIO = r"<\|audio_pad\|>"
_QWEN_PADS = r"<\|(?:fim|image|video|vision)_pad\|>"
_LLAMA_RESERVED = r"<\|reserved_special_token_\d+\|>"
_LLAMA_PAD = "<|finetune_right_pad_id|>"
_GEMMA_UNUSED = r"<unused\d+>"
_CODE_MARKS = r"<(?:jupyter_output|jupyter_code|empty_output|gh_stars|issue_comment)>"
_R1_END = "<｜end▁of▁sentence｜>"
_FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")

FAMILIES = (
    Family(
        name="DeepSeek-R1-Distill",
        model_types=("qwen2", "llama"),
        marks=("<｜begin▁of▁sentence｜>", _R1_END),
        bos="<｜begin▁of▁sentence｜>",
        ends=(_R1_END,),
        pad=_LLAMA_PAD,  # of those that are Llamas
        reserved=(_LLAMA_RESERVED, _QWEN_PADS),
        thinks=True,
    ),
    Family(
        name="Llama 3",
        model_types=("llama",),
        marks=("<|begin_of_text|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        ends=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        pad=_LLAMA_PAD,  # since 3.1
        reserved=(_LLAMA_RESERVED,),
    ),
    Family(
        name="SmolLM2",
        model_types=("llama",),
        marks=("<|im_start|>", "<|im_end|>", "<gh_stars>"),
        bos="<|im_start|>",
        ends=("<|im_end|>", "<|endoftext|>"),
        reserved=(_CODE_MARKS,),
    ),
    Family(
        name="Qwen2.5",
        model_types=("qwen2",),
        marks=("<|im_start|>", "<|im_end|>"),
        bos="",
        ends=("<|im_end|>", "<|endoftext|>"),
        reserved=(_QWEN_AUDIO, _QWEN_PADS),
        adds_audio="<|audio_pad|>",  # Qwen2 and 1.5 have no tokens for code and images
    ),
    Family(
        name="Qwen3",
        model_types=("qwen3",),
        marks=("<|im_start|>", "<|im_end|>"),
        bos="",
        ends=("<|im_end|>", "<|endoftext|>"),
        reserved=(_QWEN_AUDIO, _QWEN_PADS),
        thinks=True,
    ),
    Family(
        name="Gemma 3",
        model_types=("gemma3_text",),
        marks=("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        ends=("<end_of_turn>", "<eos>"),
        pad="<pad>",
        reserved=(_GEMMA_UNUSED,),
    ),
    Family(
        name="Qwen-MoE",
        model_types=("qwen2_moe",),
        marks=("<|im_start|>", "<|im_end|>"),
        bos="",
        ends=("<|im_end|>", "<|endoftext|>"),
        reserved=(_QWEN_AUDIO, _QWEN_PADS),
        adds_audio="<|audio_pad|>",
        linears=(*_ATTENTION, *_SHARED_EXPERT),
        experts=_FUSED,
    ),
    Family(
        name="Qwen3-MoE",
        model_types=("qwen3_moe",),
        marks=("<|im_start|>", "<|im_end|>"),
        bos="",
        ends=("<|im_end|>", "<|endoftext|>"),
        reserved=(_QWEN_AUDIO, _QWEN_PADS),
        thinks=True,
        linears=_ATTENTION,
        experts=_FUSED,
    ),
    Family(
        name="OLMoE",
        model_types=("olmoe",),
        marks=("<|padding|>",),
        # Its start and end symbol is one token, under one name in some tokenizers and under another in others.
        bos=None,
        ends=(),
        pad="<|padding|>",
        reserved=(r"\|\|\|(?:EMAIL_ADDRESS|PHONE_NUMBER)\|\|\|",),
        linears=_ATTENTION,
        experts=_FUSED,
    ),
    Family(
        name="GraniteMoE",
        model_types=("granitemoe", "granitemoeshared"),
        marks=("<|end_of_text|>", "<fim_pad>"),
        bos="<|end_of_text|>",
        ends=("<|end_of_text|>",),
        pad="<fim_pad>",
        reserved=(_CODE_MARKS,),
        linears=(*_ATTENTION, "shared_mlp.input_linear", "shared_mlp.output_linear"),
        experts=("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
    ),
)

_RESERVED = (
    _QWEN_AUDIO,
    re.escape(_LLAMA_PAD),  # meant as padding
    _LLAMA_RESERVED,
    _GEMMA_UNUSED,
    _QWEN_PADS,
    _CODE_MARKS,
    r"<\|?(?:unused|extra|reserved|special)_?(?:id_|token_)?\d+\|?>",  # many others
    r"<\|?pad(?:ding)?\|?>|\[PAD\]",  # meant as padding, where the tokenizer does not say so (Pythia)
)


def find_family(model_type: str | None, tokenizer: PreTrainedTokenizerBase) -> Family | None:
    """Find the family of an LLM, or None if the table has none.

    Args:
        model_type: of its configuration.
        tokenizer: its own.
    """
    vocabulary = _added(tokenizer)
    for family in FAMILIES:
        if model_type in family.model_types and all(mark in vocabulary for mark in family.marks):
            return family
    return None


def find_reserved_tokens(tokenizer: PreTrainedTokenizerBase, family: Family | None = None) -> list[str]:
    """List the tokens that the vocabulary holds and nothing uses, the best first, so that it need not grow.

    Without a family those of any that we know are found; a token that the tokenizer has as its end, start, unknown or
    padding symbol is in use.
    """
    vocabulary = _added(tokenizer)
    in_use = {
        str(token) for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    }
    found: list[str] = []
    for pattern in family.reserved if family else _RESERVED:
        matching = [token for token in vocabulary if re.fullmatch(pattern, token)]
        found += [token for token in sorted(matching, key=lambda t: vocabulary[t]) if token not in in_use | {*found}]
    return found


def reserve_tokens(
    tokenizer: PreTrainedTokenizerBase, family: Family | None, audio_token: str | None, num_embeddings: int
) -> str:
    """Choose the audio token, and a padding token of its own where there is one to spare; else padding stays as it is.

    Padding is masked everywhere: that it should not be the end symbol is for the eye.

    Args:
        tokenizer: gets its `pad_token`, and a name for a row of the table if its family has no other way.
        family: of `find_family`.
        audio_token: the one that is wanted; None to choose.
        num_embeddings: rows of the LLM's table.

    Returns:
        the audio token.

    Raises:
        ValueError: if there is no token to spare, or the one that is wanted is in use.
    """
    spare = [token for token in find_reserved_tokens(tokenizer, family) if token not in (audio_token, _pad_of(family))]
    if audio_token is None:
        if not spare and family and family.adds_audio and len(cast(Any, tokenizer)) < num_embeddings:
            tokenizer.add_tokens([family.adds_audio], special_tokens=True)
            spare = [family.adds_audio]
        if not spare:
            raise ValueError(
                "its tokenizer has no reserved token that stapes knows; name a token that it keeps whole and "
                "text never uses as `model.audio_token`"
            )
        audio_token = spare.pop(0)
    roles = {"bos_token", "eos_token", "pad_token", "unk_token"}
    if taken := sorted(role for role in roles if getattr(tokenizer, role) == audio_token):
        raise ValueError(f"{audio_token!r} is its tokenizer's {taken[0]}; choose another `model.audio_token`")
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        wanted = [token for token in (_pad_of(family),) if token in _added(tokenizer) and token != audio_token]
        tokenizer.pad_token = (*wanted, *spare, tokenizer.eos_token)[0]
    return audio_token


def prompt_template(prompt: str, tokenizer: PreTrainedTokenizerBase, family: Family | None) -> str:
    """Write the text around `{audio}` and `{instruction}`, up to where the answer begins.

    For a chat the tokenizer's end symbol becomes what ends a turn, where the two differ (Gemma, base models).

    Args:
        prompt: `chat` (the tokenizer's own template), `plain` (SALMONN's), or a text, which is returned.

    Raises:
        ValueError: if there is no chat template.
    """
    match prompt:
        case "plain":
            return _bos(tokenizer, family) + PLAIN_PROMPT
        case "chat":
            return _chat(tokenizer, family)
        case _:
            return prompt


def end_token_ids(
    tokenizer: PreTrainedTokenizerBase, family: Family | None, stated: int | list[int] | None
) -> list[int]:
    """List the ids that end an answer.

    Args:
        stated: what the LLM's own generation settings say, which does not always hold the end of a turn.
    """
    vocabulary = _added(tokenizer)
    known = [vocabulary[token] for token in (family.ends if family else ()) if token in vocabulary]
    others = stated if isinstance(stated, list) else [stated]
    return sorted({*others, cast(Any, tokenizer).eos_token_id, *known} - {None})


def lora_targets(target_modules: str | list[str], family: Family | None) -> str | list[str]:
    """Spell out `all-linear` for a family we know, so that it means the same in each; other targets stay as they are.

    Where we differ from peft, whose `all-linear` adapts the experts and the router of some mixtures and not of others:
    Linear layers they are in none; `target_parameters` names experts.
    """
    return sorted(family.linears) if family and target_modules == "all-linear" else target_modules


def _chat(tokenizer: PreTrainedTokenizerBase, family: Family | None) -> str:
    if tokenizer.chat_template is None:
        raise ValueError("the LLM's tokenizer has no chat template; use `prompt: plain` or a text of your own")
    messages = [{"role": "user", "content": "{audio}\n{instruction}"}]
    thinking: dict[str, Any] = {"enable_thinking": False} if family and family.thinks else {}
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **thinking))
    if thinking and text.endswith("<think>\n"):
        text += "\n</think>\n\n"
    if family and family.ends and family.ends[0] in _added(tokenizer):
        tokenizer.eos_token = family.ends[0]
    return text


def _bos(tokenizer: PreTrainedTokenizerBase, family: Family | None) -> str:
    if family is None or family.bos is None:
        return str(tokenizer.bos_token or "")
    return family.bos if family.bos in _added(tokenizer) else ""


def _pad_of(family: Family | None) -> str | None:
    return family.pad if family else None


def _added(tokenizer: Any) -> dict[str, int]:
    # Every tokenizer has it, their base class not.
    return tokenizer.get_added_vocab()
