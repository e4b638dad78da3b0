"""Batches that the model learns from: the same tokens as when it answers, labels on the answer alone."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stapes.data.collator import IGNORE, Example, collate
from stapes.errors import ManifestError
from stapes.model import CTCVocabulary, StapesForConditionalGeneration, StapesProcessor

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]

PAD, EOS, AUDIO = 260, 258, 259


@pytest.fixture
def processor(tiny_model_and_processor: ModelFactory) -> StapesProcessor:
    return tiny_model_and_processor()[1]


def features(num_features: int, seed: int = 0) -> Tensor:
    return torch.randn(80, num_features, generator=torch.Generator().manual_seed(seed))


def ids(processor: StapesProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_batch_to_the_token(processor: StapesProcessor) -> None:
    batch = collate(
        [
            Example("Hi?", "yes", input_features=features(100)),  # 50 frames, 3 windows of 17
            Example("And you?", "no", input_features=features(10, 1)),  # 5 frames, 1 window
        ],
        processor,
    )
    # In front of the audio 6 tokens, behind the instruction 13; "yes", "no" and the end symbol: 30 and 32.
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == {
        "input_ids": ((2, 32), torch.int64),
        "attention_mask": ((2, 32), torch.int64),
        "labels": ((2, 32), torch.int64),
        "input_features": ((2, 80, 100), torch.float32),
        "input_features_mask": ((2, 100), torch.int64),
    }
    before, middle, after = "<|im_start|>user\n", "\n", "<|im_end|>\n<|im_start|>assistant\n"
    rows = []
    for audio, instruction, target in ((3, "Hi?", "yes"), (1, "And you?", "no")):
        prompt = [*ids(processor, before), *[AUDIO] * audio, *ids(processor, middle + instruction + after)]
        rows.append((prompt, [*ids(processor, target), EOS]))
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        padding = 32 - length
        assert batch["input_ids"][row].tolist() == prompt + answer + [PAD] * padding
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * padding
        assert batch["labels"][row].tolist() == [IGNORE] * len(prompt) + answer + [IGNORE] * padding
    assert torch.equal(batch["input_features"][0], features(100))
    assert torch.equal(batch["input_features"][1, :, :10], features(10, 1))
    assert not batch["input_features"][1, :, 10:].any()
    assert batch["input_features_mask"].sum(dim=1).tolist() == [100, 10]


@pytest.mark.parametrize("duration_s", [0.1, 1.0, 7.3])
@pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp"])
@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_a_prompt_is_the_same_in_training_and_in_use(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms, duration_s: float, kind: str, tail: str
) -> None:
    _, processor = tiny_model_and_processor(kind, tail=tail)
    waveform, instruction = speech_like(duration_s, 0), "What does {audio} say,  please?"
    used = processor.prepare([waveform], [instruction])
    log_mel = processor.feature_extractor([waveform])["input_features"][0]
    batch = collate([Example(instruction, "", input_features=log_mel)], processor)
    # The answer to nothing is its end symbol.
    assert batch["input_ids"][0].tolist() == [*used["input_ids"][0].tolist(), EOS]
    assert torch.equal(batch["input_features"], used["input_features"])
    assert torch.equal(batch["input_features_mask"], used["input_features_mask"])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp"])
def test_stored_frames_learn_the_same(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms, kind: str
) -> None:
    model, processor = tiny_model_and_processor(kind)
    pairs = [("Hi?", "yes"), ("And you?", "not quite"), ("Who?", "me")]
    # 0.61 s and 1.07 s are odd numbers of feature frames: the last encoder frame stands for one feature frame only.
    clips = [features(100), features(61, 1), features(107, 2)]
    from_features = collate(
        [Example(*pair, input_features=clip) for pair, clip in zip(pairs, clips, strict=True)], processor
    )
    stored = [model.encode(clip[None])[0][0] for clip in clips]
    assert [frames.shape[0] for frames in stored] == [50, 31, 54]
    from_frames = collate(
        [Example(*pair, encoder_frames=frames.half()) for pair, frames in zip(pairs, stored, strict=True)], processor
    )
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(from_frames[name], from_features[name])
    assert from_frames["encoder_frames"].shape == (3, 54, 32)
    assert from_frames["encoder_frames"].dtype == torch.float32
    assert from_frames["encoder_frames_mask"].sum(dim=1).tolist() == [50, 31, 54]
    assert not from_frames["encoder_frames"][~from_frames["encoder_frames_mask"]].any()
    assert model(**from_frames).loss.item() == pytest.approx(model(**from_features).loss.item(), abs=1e-3)


def test_loss_does_not_depend_on_the_batch(tiny_model_and_processor: ModelFactory) -> None:
    model, processor = tiny_model_and_processor()
    examples = [
        Example("Hi?", "yes", input_features=features(100)),
        Example("And how are you today?", "well, thank you", input_features=features(300, 1)),
    ]
    with torch.no_grad():
        together = model(**collate(examples, processor), num_items_in_batch=1).loss.item()
        alone = [model(**collate([example], processor), num_items_in_batch=1).loss.item() for example in examples]
    assert together == pytest.approx(sum(alone), rel=1e-4)


def test_a_transcript_is_spelt_in_what_ctc_hears_and_no_other_answer_is(processor: StapesProcessor) -> None:
    letters = processor.tokenizer
    settings = json.loads(letters.backend_tokenizer.to_str())
    settings["model"]["merges"] = [["Ġ", "n"], ["Ġn", "o"]]
    settings["model"]["vocab"] |= {"Ġn": 300, "Ġno": 301}
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)), eos_token=letters.eos_token, pad_token="<pad>"
    )
    vocabulary = CTCVocabulary(processor.tokenizer, 1)
    for target, transcript, end in (
        ("oh no", "oh no", ["o", "h", "Ġn", "o"]),
        ("oh no", None, ["o", "h", "Ġno"]),
        ("oh no", "", ["o", "h", "Ġno"]),
    ):
        example = Example("Hi?", target, input_features=features(100), transcript=transcript)
        labels = collate([example], processor, vocabulary)["labels"][0]
        learnt = [label for label in labels.tolist() if label != IGNORE]
        assert processor.tokenizer.convert_ids_to_tokens(learnt) == [*end, letters.eos_token]


@pytest.mark.parametrize(
    ("instruction", "target", "what"), [("Hi?", "say {}", "target"), ("{}?", "yes", "instruction")]
)
def test_a_text_with_the_audio_token_is_the_manifests_mistake(
    processor: StapesProcessor, instruction: str, target: str, what: str
) -> None:
    token = processor.audio_token
    instruction, target = instruction.format(token), target.format(token)
    with pytest.raises(ManifestError) as caught:
        collate([Example(instruction, target, input_features=features(100))], processor)
    text = {"target": target, "instruction": instruction}[what]
    assert str(caught.value) == f"the {what} '{text}' holds the audio token '{token}'; take it out"
