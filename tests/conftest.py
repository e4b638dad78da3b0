"""A real model in miniature: real tokenizer, processor and layers, random weights, nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ClapAudioConfig,
    ClapFeatureExtractor,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from stapes.bench.protocols import speech_shaped_noise
from stapes.model import (
    BeatsConfig,
    BeatsFeatureExtractor,
    ConnectorConfig,
    EatConfig,
    EatFeatureExtractor,
    SoundTowerFeatureExtractor,
    StapesConfig,
    StapesFeatureExtractor,
    StapesForConditionalGeneration,
    StapesProcessor,
    describe_tower,
)

ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]

UNK, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
AUDIO, PAD, SPARE = (f"<|reserved_special_token_{i}|>" for i in range(3))
PROMPT = "<|im_start|>user\n{audio}\n{instruction}<|im_end|>\n<|im_start|>assistant\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: every text is its UTF-8 bytes, and decodes to itself; 262 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([UNK, BOS, EOS, AUDIO, PAD, SPARE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
    )


def make_model_and_processor(
    kind: Literal["windowed_qformer", "stacked_mlp", "ctc_compressor"] = "windowed_qformer",
    *,
    seed: int = 0,
    pad_audio_to_s: float | None = None,
    tail: Literal["pad", "drop"] = "pad",
    sound: Literal["beats", "eat", "ast", "clap"] | None = None,
    sound_layer: int | None = None,
    ctc_letters: int = 0,
    ctc_phones: int = 0,
) -> tuple[StapesForConditionalGeneration, StapesProcessor]:
    """Build a model of 0.2 M parameters in eval mode, and its processor.

    The LLM's initial weights are ten times as large as usual: its greedy answers then differ from clip to clip, and
    the best token is ahead of the second by more than rounding.
    """
    tokenizer = make_tokenizer()
    bos, eos, pad, audio = (tokenizer.convert_tokens_to_ids(token) for token in (BOS, EOS, PAD, AUDIO))
    connector = (
        ConnectorConfig(
            kind="windowed_qformer",
            frames_per_window=17,
            tail=tail,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        )
        if kind == "windowed_qformer"
        else ConnectorConfig(
            kind=kind,
            frames_per_window=8,
            tail=tail,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            num_ctc_tokens=28,
            sound_layer=sound_layer,
            ctc_letters=ctc_letters,
            ctc_phones=ctc_phones,
        )
    )
    config = StapesConfig(
        speech_config=WhisperConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=80
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.2,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
        ),
        connector_config=connector,
        sound_config=SOUND_ENCODERS[sound][0] if sound else None,
        audio_token_id=audio,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = StapesForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, suppress_tokens=[audio]
    )
    processor = StapesProcessor(
        StapesFeatureExtractor(pad_to_s=pad_audio_to_s, sound=SOUND_ENCODERS[sound][1] if sound else None),
        tokenizer,
        audio_token=AUDIO,
        prompt_template=PROMPT,
        frames_per_window=connector.frames_per_window,
        queries_per_window=connector.queries_per_window,
        tail=connector.tail,
    )
    return model, processor


# Audio models of transformers, 24 wide, and the settings of their front ends; blocks of 1.28 and 2 s.
TOWERS: list[tuple[str, tuple[PreTrainedConfig, dict]]] = [
    (
        "ast",
        (
            ASTConfig(
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=48,
                max_length=128,
                num_mel_bins=32,
                initializer_range=0.5,
            ),
            ASTFeatureExtractor(num_mel_bins=32, max_length=128).to_dict(),
        ),
    ),
    (
        "clap",
        (
            ClapAudioConfig(
                spec_size=64,
                window_size=2,
                num_mel_bins=16,
                depths=[1, 1],
                num_attention_heads=[2, 2],
                patch_embeds_hidden_size=12,
            ),
            ClapFeatureExtractor(feature_size=16, max_length_s=2).to_dict(),
        ),
    ),
]
# Of each kind the sizes of the encoder and the settings of its front end; all are 24 wide.
SOUND_ENCODERS: dict[str, tuple[dict, dict]] = {
    "beats": (
        BeatsConfig(
            patch_embedding_size=8,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            conv_kernel=8,
            conv_groups=2,
            num_buckets=16,
            max_distance=40,
        ).to_dict(),
        BeatsFeatureExtractor().to_dict(),
    ),
    "eat": (
        EatConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48).to_dict(),
        EatFeatureExtractor().to_dict(),
    ),
    **{
        name: (describe_tower(*tower).to_dict(), SoundTowerFeatureExtractor(tower[1]).to_dict())
        for name, tower in TOWERS
    },
}


def save_parts(folder: Path) -> None:
    """Write `encoder/` and `llm/` into `folder` as the Hub would hold them, in miniature."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 64}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    whisper = WhisperForConditionalGeneration(WhisperConfig(**sizes, **decoder, **tokens, num_mel_bins=80))
    whisper.save_pretrained(folder / "encoder")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "encoder")
    make_model_and_processor()[0].language_model.save_pretrained(folder / "llm")
    make_tokenizer().save_pretrained(folder / "llm")


# Threads only get in each other's way in a model this small: on busy cores two are ten times slower than one.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with a chat template and reserved tokens."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_and_processor() -> ModelFactory:
    """Factory `(kind="windowed_qformer", *, seed=0, pad_audio_to_s=None, tail="pad", sound=None) -> (…)`."""
    return make_model_and_processor


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model folder named `tiny`; read it, copy it, but change nothing in it."""
    from stapes.assembly import save_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(*make_model_and_processor(), folder)
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `encoder/` and `llm/` for recipes to name; read it, copy it, but change nothing in it."""
    folder = tmp_path_factory.mktemp("parts")
    save_parts(folder)
    return folder


@pytest.fixture(scope="session")
def speech_like() -> Callable[[float, int], np.ndarray]:
    """Factory `(duration_s, seed) -> waveform (N,)`, float32, mono, 16 kHz, peak 0.5."""
    return speech_shaped_noise
