"""A tiny Llama written as GGUF by the `gguf` package: converted to the same model, quantized blocks included."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stapes.errors import WeightsError
from stapes.weights.gguf import convert_gguf

HEADS, KEY_HEADS, WIDTH = 4, 2, 64


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """SmolLM2's way with text in miniature: digits apart, then words, and a few merges."""
    merges = [("Ġ", "Ġ"), ("Ġ", "1"), ("1", "2"), ("m", "a")]
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"".join(pair): 256 + i for i, pair in enumerate(merges)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>",
        chat_template=tiny_tokenizer.chat_template,
    )


@pytest.fixture(scope="module")
def llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=261,
        eos_token_id=262,
        pad_token_id=263,
    )
    return LlamaForCausalLM(config).eval()


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns pairs of neighbouring rows, transformers rows half a head apart; so GGUF files reorder them."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, quantization: gguf.GGMLQuantizationType
) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    added = tokenizer.get_added_vocab()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in added else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(["Ġ Ġ", "Ġ 1", "1 2", "m a"])
    writer.add_bos_token_id(261)
    writer.add_eos_token_id(262)
    writer.add_pad_token_id(263)
    writer.add_chat_template(str(tokenizer.chat_template))
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        theirs = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd")
        theirs = theirs.replace("model.norm", "output_norm")
        for ours, short in names.items():
            theirs = theirs.replace(ours, short)
        if name.startswith("lm_head"):
            continue  # tied
        if "q_proj" in name or "k_proj" in name:
            weight = interleave(weight, HEADS if "q_proj" in name else KEY_HEADS)
        if weight.ndim == 2 and weight.shape[1] % 32 == 0 and quantization != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(theirs, gguf.quants.quantize(weight, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(theirs, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_the_converted_llm_is_the_same(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str
) -> None:
    write_gguf(tmp_path / "model.gguf", llama, tokenizer, gguf.GGMLQuantizationType[kind])
    folder = tmp_path / "llm"
    folder.mkdir()
    assert convert_gguf(tmp_path / "model.gguf", folder) == "float32"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.float32
    config = json.loads((folder / "config.json").read_text())
    assert (config["rms_norm_eps"], config["tie_word_embeddings"]) == (1e-5, True)
    assert "quantization_config" not in config
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    # The blocks hold what `quantize` made of the weights, and that exactly is in the converted file.
    expected = copy.deepcopy(llama)
    for parameter in expected.parameters() if kind == "Q8_0" else ():
        if parameter.ndim == 2:
            blocks = gguf.quants.quantize(parameter.numpy(), gguf.GGMLQuantizationType.Q8_0)
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    ids = torch.arange(20, 60)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_the_converted_tokenizer_is_the_same(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", llama, tokenizer, gguf.GGMLQuantizationType.F32)
    folder = tmp_path / "llm"
    folder.mkdir()
    convert_gguf(tmp_path / "model.gguf", folder)
    converted = AutoTokenizer.from_pretrained(folder)
    # Two spaces before a number: without the digits split off first, " 12" would be a word.
    for text in ("<|im_start|>Grüße,  42 mal<|im_end|>", "a  12", "12 1212"):
        assert converted(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert converted.decode(converted(text)["input_ids"]) == text
    assert (converted.bos_token_id, converted.eos_token_id, converted.pad_token_id) == (261, 262, 263)
    assert converted.chat_template == tokenizer.chat_template
    assert converted.model_max_length == 512
    assert len(converted) == len(tokenizer)


@pytest.mark.parametrize("content", [b"", b"not a GGUF file at all", b"GGUF\3\0\0\0"])
def test_what_is_not_a_gguf_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.gguf: transformers cannot read this GGUF file: "):
        convert_gguf(tmp_path / "model.gguf", tmp_path)
