"""Features as Whisper makes them but at a clip's true length, and prompts that hold one token per audio embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoFeatureExtractor, AutoProcessor, PreTrainedTokenizerFast, WhisperFeatureExtractor

from stapes.assembly import load_model, save_model
from stapes.errors import ModelFolderError
from stapes.model import (
    StapesFeatureExtractor,
    StapesForConditionalGeneration,
    StapesProcessor,
    WordList,
    find_reserved_tokens,
)
from stapes.model.processing import WORDS_FILE

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]

AUDIO = "<|reserved_special_token_0|>"


@pytest.fixture
def processor(tiny_model_and_processor: ModelFactory) -> StapesProcessor:
    return tiny_model_and_processor()[1]


# Features


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("duration_s", [0.025, 1.0, 30.0])
def test_padded_features_are_whispers_own(speech_like: Waveforms, num_mels: int, duration_s: float) -> None:
    waveform = speech_like(duration_s, 0)
    expected = WhisperFeatureExtractor(feature_size=num_mels)(waveform, sampling_rate=16_000, return_tensors="pt")
    ours = StapesFeatureExtractor(feature_size=num_mels, pad_to_s=30.0)([waveform])
    assert ours["input_features"].dtype == torch.float32
    assert torch.equal(ours["input_features"], expected["input_features"])
    assert torch.equal(ours["input_features_mask"], torch.ones(1, 3000, dtype=torch.int64))


@pytest.mark.parametrize(("duration_s", "num_features"), [(0.025, 2), (0.1, 10), (1.0, 100), (7.3, 730), (65.0, 6500)])
def test_features_follow_the_true_length(speech_like: Waveforms, duration_s: float, num_features: int) -> None:
    ours = StapesFeatureExtractor()([speech_like(duration_s, 0)])
    assert ours["input_features"].shape == (1, 80, num_features)
    assert ours["input_features_mask"].tolist() == [[1] * num_features]


def test_true_length_features_are_those_of_the_padded_clip(speech_like: Waveforms) -> None:
    waveform = speech_like(2.0, 0)
    whisper = WhisperFeatureExtractor()(waveform, sampling_rate=16_000, return_tensors="pt")["input_features"]
    ours = StapesFeatureExtractor()([waveform])["input_features"]
    # The last analysis windows reach past the clip's end, into its mirror image here and into silence there.
    torch.testing.assert_close(ours[:, :, :198], whisper[:, :, :198], atol=1e-6, rtol=0)


def test_features_do_not_depend_on_the_batch(speech_like: Waveforms) -> None:
    extractor = StapesFeatureExtractor()
    clips = [speech_like(duration_s, seed) for seed, duration_s in enumerate([0.03, 1.0, 7.3, 31.0])]
    clips[1] = clips[1] * 1e-3  # Whisper's floor is 8 below a clip's own loudest point, not the batch's
    batch = extractor(clips)
    assert batch["input_features"].shape == (4, 80, 3100)
    assert batch["input_features_mask"].sum(dim=1).tolist() == [3, 100, 730, 3100]
    for row, clip in enumerate(clips):
        alone = extractor([clip])["input_features"][0]
        assert torch.equal(batch["input_features"][row, :, : alone.shape[1]], alone)
        assert not batch["input_features"][row, :, alone.shape[1] :].any()


def test_padding_never_cuts(speech_like: Waveforms) -> None:
    waveform = speech_like(31.0, 0)
    padded = StapesFeatureExtractor(pad_to_s=30.0)([waveform])["input_features"]
    assert torch.equal(padded, StapesFeatureExtractor()([waveform])["input_features"])


def test_one_waveform_need_not_be_in_a_list(speech_like: Waveforms) -> None:
    waveform = speech_like(1.0, 0)
    extractor = StapesFeatureExtractor()
    alone = extractor(waveform, sampling_rate=16_000)["input_features"]
    assert torch.equal(alone, extractor([waveform])["input_features"])


@pytest.mark.parametrize(
    ("waveform", "settings", "message"),
    [
        (np.zeros(399), {}, r"^a waveform has shape \(399,\); wanted \(N,\) with N ≥ 400 \(25 ms at 16 kHz\)$"),
        (np.zeros((1, 2, 16_000)), {}, r"^a waveform has shape \(2, 16000\); wanted \(N,\)"),
        (
            np.zeros(16_000),
            {"sampling_rate": 44_100},
            r"^the audio is at 44100 Hz, the model wants 16000; resample it$",
        ),
        (np.zeros(16_000), {"truncation": True}, r"^truncation: audio is never cut here; a clip's features follow"),
    ],
)
def test_waveforms_that_cannot_be_used(waveform: np.ndarray, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StapesFeatureExtractor()(waveform, **settings)


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_a_tokenizers_settings_are_not_the_audios(speech_like: Waveforms, processor: StapesProcessor) -> None:
    """transformers hands a tokenizer's `max_length` to the feature extractor, too."""
    processor.tokenizer.init_kwargs |= {"max_length": 8, "pad_to_multiple_of": None}
    inputs = processor.prepare([speech_like(1.0, 0)], ["Listen to all of this."])
    assert inputs["input_ids"].shape[1] > 8
    assert inputs["input_features"].shape == (1, 80, 100)


# Prompts


@pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp"])
@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_processor_and_model_agree_on_the_number_of_audio_tokens(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms, kind: str, tail: str
) -> None:
    model, processor = tiny_model_and_processor(kind, tail=tail)
    # By hand: 10, 100, 730, 3000 and 6500 features are 5, 50, 365, 1500 and 3250 frames; windows of 17, stacks of 8.
    expected = {
        ("windowed_qformer", "pad"): [1, 3, 22, 89, 192],
        ("windowed_qformer", "drop"): [1, 2, 21, 88, 191],
        ("stacked_mlp", "pad"): [1, 7, 46, 188, 407],
        ("stacked_mlp", "drop"): [1, 6, 45, 187, 406],
    }[kind, tail]
    clips = [speech_like(duration_s, seed) for seed, duration_s in enumerate([0.1, 1.0, 7.3, 30.0, 65.0])]
    inputs = processor.prepare(clips, ["Listen."] * 5)
    assert (inputs["input_ids"] == processor.audio_token_id).sum(dim=1).tolist() == expected
    with torch.no_grad():
        frames, frames_mask = model.encode(inputs["input_features"], inputs["input_features_mask"])
        _, tokens_mask = model.connector(frames, frames_mask)
    assert tokens_mask.sum(dim=1).tolist() == expected
    assert [model.config.num_audio_tokens(n) for n in (10, 100, 730, 3000, 6500)] == expected


def test_padded_clips_all_have_the_tokens_of_30_s(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor(pad_audio_to_s=30.0)
    inputs = processor.prepare([speech_like(0.1, 0), speech_like(30.0, 1), speech_like(31.0, 2)], ["Listen."] * 3)
    assert (inputs["input_ids"] == processor.audio_token_id).sum(dim=1).tolist() == [89, 89, 92]
    with torch.no_grad():
        assert model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).shape == (270, 64)


def test_prompts_are_padded_on_the_left(processor: StapesProcessor, speech_like: Waveforms) -> None:
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(2.0, 1)], ["Hi?", "And now for more."])
    # 3 audio tokens and 6 of them; the tiny tokenizer has a token for each byte.
    frame = "<|im_start|>user\n{audio}\n{instruction}<|im_end|>\n<|im_start|>assistant\n"
    texts = [
        frame.format(audio=AUDIO * 3, instruction="Hi?"),
        frame.format(audio=AUDIO * 6, instruction="And now for more."),
    ]
    expected = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    missing = len(expected[1]) - len(expected[0])
    assert missing == 17
    assert inputs["input_ids"].tolist() == [[processor.tokenizer.pad_token_id] * missing + expected[0], expected[1]]
    assert inputs["attention_mask"].tolist() == [[0] * missing + [1] * len(expected[0]), [1] * len(expected[1])]


def test_an_instruction_is_text_whatever_it_holds(processor: StapesProcessor) -> None:
    instruction = r"What does {audio} or {instruction} or \1 mean?"
    assert processor.build_prompt(instruction) == (
        f"<|im_start|>user\n{AUDIO}\n{instruction}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_instruction_may_come_before_the_audio(processor: StapesProcessor) -> None:
    processor.prompt_template = "{instruction}\n{audio}\nAnswer:"
    assert processor.build_prompt("Listen.") == f"Listen.\n{AUDIO}\nAnswer:"


def test_an_instruction_with_the_audio_token_is_refused(processor: StapesProcessor) -> None:
    with pytest.raises(
        ValueError, match=r"^the instruction holds the audio token '<\|reserved_special_token_0\|>'; take"
    ):
        processor.build_prompt(f"What is {AUDIO}?")


def test_text_alone_needs_no_audio(processor: StapesProcessor) -> None:
    assert processor(text="abc")["input_ids"] == [[processor.tokenizer.convert_tokens_to_ids(c) for c in "abc"]]


def test_several_clips_in_one_prompt(processor: StapesProcessor, speech_like: Waveforms) -> None:
    inputs = processor(text=f"{AUDIO} or {AUDIO}?", audio=[speech_like(1.0, 0), speech_like(0.1, 1)])
    ids = inputs["input_ids"][0]
    where = [position for position, token in enumerate(ids) if token == processor.audio_token_id]
    assert where == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"audio_token": "<|audio|>"}, r"^audio_token '<\|audio\|>' is not a token that the tokenizer keeps whole"),
        ({"audio_token": "a"}, r"^audio_token 'a' is not a token that the tokenizer keeps whole"),
        ({"prompt_template": "{instruction}"}, r"^prompt_template wants \{audio\} once, not 0 times$"),
        ({"prompt_template": "{audio}{instruction}{instruction}"}, r"wants \{instruction\} once, not 2 times$"),
    ],
)
def test_a_processor_that_cannot_be_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], message: str
) -> None:
    good: dict[str, Any] = {
        "audio_token": AUDIO,
        "prompt_template": "{audio}{instruction}",
        "frames_per_window": 17,
        "queries_per_window": 1,
        "tail": "pad",
    }
    with pytest.raises(ValueError, match=message):
        StapesProcessor(StapesFeatureExtractor(), tiny_tokenizer, **{**good, **settings})


def test_a_processor_is_saved_and_loaded(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms, tmp_path: Path
) -> None:
    model, processor = tiny_model_and_processor("stacked_mlp", tail="drop", pad_audio_to_s=3.0)
    processor.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    back = AutoProcessor.from_pretrained(tmp_path)
    assert type(back) is StapesProcessor
    assert type(back.feature_extractor) is StapesFeatureExtractor
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is StapesFeatureExtractor
    clips, instructions = [speech_like(1.0, 0), speech_like(5.0, 1)], ["Hi?", "And now?"]
    expected, found = processor.prepare(clips, instructions), back.prepare(clips, instructions)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_the_words_of_transcripts_are_saved_and_loaded(tiny_model_and_processor: ModelFactory, tmp_path: Path) -> None:
    model, processor = tiny_model_and_processor("ctc_compressor", ctc_letters=64)
    assert processor.words is None
    processor.words = WordList({"two": -1.0, "words": -2.0})
    save_model(model, processor, tmp_path / "a")
    _, back = load_model(tmp_path / "a")
    assert back.words is not None
    assert (len(back.words), "words" in back.words) == (2, True)
    save_model(model, back, tmp_path / "b")
    assert (tmp_path / "b" / WORDS_FILE).read_bytes() == (tmp_path / "a" / WORDS_FILE).read_bytes()
    (tmp_path / "b" / WORDS_FILE).write_bytes(b"no list")
    with pytest.raises(ModelFolderError, match=rf"b: cannot be read: .*{WORDS_FILE}: no text, or a damaged one"):
        load_model(tmp_path / "b")
    (tmp_path / "b" / WORDS_FILE).unlink()
    assert load_model(tmp_path / "b")[1].words is None


# Reserved tokens


def tokenizer_with(special: list[str], **roles: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.add_special_tokens([*special, *(token for token in roles.values() if token not in special)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        # Qwen2.5: the token meant for audio, before those for code and images
        (
            ["<|vision_pad|>", "<|image_pad|>", "<|fim_pad|>", "<|audio_pad|>"],
            ["<|audio_pad|>", "<|vision_pad|>", "<|image_pad|>", "<|fim_pad|>"],
        ),
        (
            ["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"],  # Llama 3.1
            ["<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<|reserved_special_token_2|>"],
        ),
        (["<start_of_turn>", "<unused0>", "<unused1>"], ["<unused0>", "<unused1>"]),  # Gemma
        (["<repo_name>", "<jupyter_code>", "<gh_stars>", "<file_sep>"], ["<jupyter_code>", "<gh_stars>"]),  # SmolLM2
        (["<|extra_id_7|>", "<|extra_id_3|>"], ["<|extra_id_7|>", "<|extra_id_3|>"]),
        (["<|endoftext|>", "<|padding|>"], ["<|padding|>"]),  # Pythia
        (["<|endoftext|>"], []),  # GPT-2
    ],
)
def test_reserved_tokens_of_the_families(special: list[str], expected: list[str]) -> None:
    tokenizer = tokenizer_with(special, bos_token="<s>", eos_token="</s>")
    size = len(tokenizer)
    assert find_reserved_tokens(tokenizer) == expected
    assert len(tokenizer) == size


def test_a_token_in_use_is_not_reserved() -> None:
    tokenizer = tokenizer_with(["<unused0>", "<unused1>", "<unused2>"], pad_token="<unused0>", eos_token="<unused1>")
    assert find_reserved_tokens(tokenizer) == ["<unused2>"]
