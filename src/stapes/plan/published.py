"""Shapes of public models, for machines that hold no copy of their configuration files.

Each entry is what the config.json of that Hub id says, reduced to what decides a shape; the id is its source. Entries
were compared with the parameter counts their authors publish (tests/plan/test_plan_shapes.py).
`dtype` is what the files hold, float32 where it is left out: loading such in 16 bits takes copies.
`tokenizer_length` stands where the tokenizer knows fewer tokens than the table has rows, `ctc_pieces` (merges → pieces
of words for a `ctc_compressor`) where they were counted: in the tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _whisper(d_model: int, layers: int, heads: int, mels: int = 80, dtype: str = "float32") -> Config:
    return {
        "dtype": dtype,
        "model_type": "whisper",
        "d_model": d_model,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * d_model,
        "num_mel_bins": mels,
        "max_source_positions": 1500,
    }


def _llm(
    model_type: str, width: int, ffn: int, layers: int, heads: tuple[int, int], vocab: int, **others: Any
) -> Config:
    """Write an LLM's configuration; `heads` are those of queries and of keys and values."""
    return {
        "model_type": model_type,
        "dtype": "bfloat16",
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        **others,
    }


_NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}

_LLAMA_32_1B = _llm("llama", 2048, 8192, 16, (32, 8), 128_256, tie_word_embeddings=True)
_LLAMA_32_3B = _llm("llama", 3072, 8192, 28, (24, 8), 128_256, tie_word_embeddings=True)
_LLAMA_3_8B = _llm("llama", 4096, 14_336, 32, (32, 8), 128_256)
_LLAMA_2_7B = _llm("llama", 4096, 11_008, 32, (32, 32), 32_000, dtype="float16")
_LLAMA_2_13B = _llm("llama", 5120, 13_824, 40, (40, 40), 32_000, dtype="float16")

_QWEN_TIED = {"tie_word_embeddings": True, "tokenizer_length": 151_665}
_QWEN_25_05B = _llm("qwen2", 896, 4864, 24, (14, 2), 151_936, **_QWEN_TIED)
_QWEN_25_15B = _llm("qwen2", 1536, 8960, 28, (12, 2), 151_936, **_QWEN_TIED)
_QWEN_25_3B = _llm("qwen2", 2048, 11_008, 36, (16, 2), 151_936, **_QWEN_TIED)
_QWEN_25_7B = _llm("qwen2", 3584, 18_944, 28, (28, 4), 152_064, tokenizer_length=151_665)
_QWEN_3 = {"head_dim": 128, "tie_word_embeddings": True, "tokenizer_length": 151_669}
_QWEN_15_MOE = _llm(
    "qwen2_moe",
    2048,
    5632,
    24,
    (16, 16),
    151_936,
    tokenizer_length=151_646,
    num_experts=60,
    num_experts_per_tok=4,
    moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632,
)
_GEMMA_2_2B = _llm("gemma2", 2304, 9216, 26, (8, 4), 256_000, head_dim=256, final_logit_softcapping=30.0)
_GEMMA_3_270M = _llm("gemma3_text", 640, 2048, 18, (4, 1), 262_144, head_dim=256)
_GEMMA_3_1B = _llm("gemma3_text", 1152, 6912, 26, (4, 1), 262_144, head_dim=256)
# Merges → pieces, and the groups of letters in them.
_CTC_PIECES = {1500: (1371, 1400), 5000: (4306, 2596), 12_000: (9667, 3491), 50_000: (33_182, 5537)}
_SMOLLM2: Config = {"tie_word_embeddings": True, "ctc_pieces": _CTC_PIECES}
_SMOLLM2_135M = _llm("llama", 576, 1536, 30, (9, 3), 49_152, **_SMOLLM2)
_SMOLLM2_360M = _llm("llama", 960, 2560, 32, (15, 5), 49_152, **_SMOLLM2)
_SMOLLM2_17B = _llm("llama", 2048, 8192, 24, (32, 32), 49_152, **_SMOLLM2)
_OLMOE = _llm(
    "olmoe",
    2048,
    1024,
    16,
    (16, 16),
    50_304,
    tokenizer_length=50_280,
    num_experts=64,
    num_experts_per_tok=8,
)
_GRANITE_TOP8 = {"tie_word_embeddings": True, "num_experts_per_tok": 8}
_GRANITE_1B = _llm("granitemoe", 1024, 512, 24, (16, 8), 49_155, num_local_experts=32, **_GRANITE_TOP8)
_GRANITE_3B = _llm("granitemoe", 1536, 512, 32, (24, 8), 49_155, num_local_experts=40, **_GRANITE_TOP8)

PUBLISHED: dict[str, Config] = {
    **{f"openai/whisper-tiny{en}": _whisper(384, 4, 6) for en in ("", ".en")},
    **{f"openai/whisper-base{en}": _whisper(512, 6, 8) for en in ("", ".en")},
    **{f"openai/whisper-small{en}": _whisper(768, 12, 12) for en in ("", ".en")},
    **{f"openai/whisper-medium{en}": _whisper(1024, 24, 16) for en in ("", ".en")},
    **{f"openai/whisper-large{version}": _whisper(1280, 32, 20) for version in ("", "-v2")},
    **{f"openai/whisper-large-v3{turbo}": _whisper(1280, 32, 20, 128, "float16") for turbo in ("", "-turbo")},
    **{f"meta-llama/Llama-3.2-1B{it}": _LLAMA_32_1B for it in ("", "-Instruct")},
    **{f"meta-llama/Llama-3.2-3B{it}": _LLAMA_32_3B for it in ("", "-Instruct")},
    **{f"meta-llama/Meta-Llama-3-8B{it}": _LLAMA_3_8B for it in ("", "-Instruct")},
    **{f"meta-llama/{meta}Llama-3.1-8B{it}": _LLAMA_3_8B for meta in ("", "Meta-") for it in ("", "-Instruct")},
    "unsloth/Llama-3.2-1B-Instruct-bnb-4bit": {**_LLAMA_32_1B, "quantization_config": _NF4},
    "unsloth/Llama-3.2-3B-Instruct-bnb-4bit": {**_LLAMA_32_3B, "quantization_config": _NF4},
    **{f"meta-llama/Llama-2-7b{chat}-hf": _LLAMA_2_7B for chat in ("", "-chat")},
    **{f"meta-llama/Llama-2-13b{chat}-hf": _LLAMA_2_13B for chat in ("", "-chat")},
    "lmsys/vicuna-7b-v1.5": _LLAMA_2_7B,
    "lmsys/vicuna-13b-v1.5": _LLAMA_2_13B,
    **{f"Qwen/Qwen2.5-0.5B{it}": _QWEN_25_05B for it in ("", "-Instruct")},
    **{f"Qwen/Qwen2.5-1.5B{it}": _QWEN_25_15B for it in ("", "-Instruct")},
    **{f"Qwen/Qwen2.5-3B{it}": _QWEN_25_3B for it in ("", "-Instruct")},
    **{f"Qwen/Qwen2.5-7B{it}": _QWEN_25_7B for it in ("", "-Instruct")},
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": _QWEN_25_05B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": {**_QWEN_25_15B, "tie_word_embeddings": False},
    "Qwen/Qwen3-0.6B": _llm("qwen3", 1024, 3072, 28, (16, 8), 151_936, **_QWEN_3),
    "Qwen/Qwen3-1.7B": _llm("qwen3", 2048, 6144, 28, (16, 8), 151_936, **_QWEN_3),
    **{f"Qwen/Qwen1.5-MoE-A2.7B{chat}": _QWEN_15_MOE for chat in ("", "-Chat")},
    "google/gemma-2-2b": {**_GEMMA_2_2B, "dtype": "float32"},
    "google/gemma-2-2b-it": _GEMMA_2_2B,
    "shuyuej/gemma-2-2b-it-GPTQ": {
        **_GEMMA_2_2B,
        "dtype": "float16",
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    },
    **{f"google/gemma-3-270m{it}": _GEMMA_3_270M for it in ("", "-it")},
    **{f"google/gemma-3-1b-{it}": _GEMMA_3_1B for it in ("pt", "it")},
    **{f"HuggingFaceTB/SmolLM2-135M{it}": _SMOLLM2_135M for it in ("", "-Instruct")},
    **{f"HuggingFaceTB/SmolLM2-360M{it}": _SMOLLM2_360M for it in ("", "-Instruct")},
    **{f"HuggingFaceTB/SmolLM2-1.7B{it}": _SMOLLM2_17B for it in ("", "-Instruct")},
    **{f"allenai/OLMoE-1B-7B-0924{it}": _OLMOE for it in ("", "-Instruct")},
    **{f"ibm-granite/granite-3.{v}-1b-a400m-{it}": _GRANITE_1B for v in (0, 1) for it in ("base", "instruct")},
    **{f"ibm-granite/granite-3.{v}-3b-a800m-{it}": _GRANITE_3B for v in (0, 1) for it in ("base", "instruct")},
    # Names of the files that microsoft/unilm and cwx-worst-one/EAT release, not of Hub repositories.
    "BEATs_iter3_plus_AS2M": {"model_type": "stapes_beats"},
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2": {"model_type": "stapes_beats", "num_classes": 527},
    "EAT-base_epoch30_pt": {"model_type": "stapes_eat"},
}
"""Name → configuration."""
