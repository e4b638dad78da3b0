"""transformers' own `generate`, unmodified, in all its ways; and the same words in every batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, TextIteratorStreamer

from stapes.inference import AudioLM
from stapes.model import StapesForConditionalGeneration, StapesProcessor

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]

NEW_TOKENS = 16


class Setting:
    """A model, its processor, and prompts of clips of several lengths."""

    def __init__(self, factory: ModelFactory, kind: str, speech_like: Waveforms) -> None:
        self.factory = factory
        self.kind = kind
        self.model, self.processor = factory(kind)
        durations_s = [0.1, 0.5, 1.0, 1.7, 3.3, 7.3, 30.0, 33.0]
        self.clips = [speech_like(duration_s, seed) for seed, duration_s in enumerate(durations_s)]
        self.instructions = [f"Say {'it ' * seed}again." for seed in range(8)]

    def inputs(self, *rows: int) -> dict[str, Tensor]:
        return dict(self.processor.prepare([self.clips[r] for r in rows], [self.instructions[r] for r in rows]))

    def generate(self, *rows: int, **settings: Any) -> list[list[int]]:
        """Generate greedily for clips `rows`, unless told otherwise; the new tokens."""
        model: Any = self.model
        inputs = self.inputs(*rows)
        output = model.generate(**inputs, **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **settings})
        return output[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(params=["windowed_qformer", "stacked_mlp"])
def setting(request: pytest.FixtureRequest, tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> Setting:
    return Setting(tiny_model_and_processor, request.param, speech_like)


def count_calls(module: torch.nn.Module) -> list[tuple[int, ...]]:
    """Note the shape of what a module returns, call by call."""
    calls: list[tuple[int, ...]] = []
    module.register_forward_hook(lambda _module, _inputs, output: calls.append(tuple(output[0].shape)))
    return calls


def test_generate_is_transformers_own() -> None:
    ours: Any = StapesForConditionalGeneration
    theirs: Any = GenerationMixin
    assert ours.generate is theirs.generate
    assert ours.save_pretrained is PreTrainedModel.save_pretrained


def test_greedy_is_the_best_token_each_time(setting: Setting) -> None:
    """A loop without cache, padding or `generate`."""
    [expected] = setting.generate(2)
    inputs = setting.inputs(2)
    ids, said = inputs["input_ids"], []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            logits = setting.model(
                input_ids=ids,
                input_features=inputs["input_features"],
                input_features_mask=inputs["input_features_mask"],
            ).logits[0, -1]
            logits[setting.processor.audio_token_id] = -torch.inf  # an answer holds no audio
            said.append(int(logits.argmax()))
            ids = torch.cat([ids, torch.tensor([[said[-1]]])], dim=1)
            if said[-1] == setting.processor.tokenizer.eos_token_id:
                break
    assert said == expected


def test_cached_is_uncached(setting: Setting) -> None:
    assert setting.generate(1, 3, 5) == setting.generate(1, 3, 5, use_cache=False)


def test_a_static_cache_says_the_same(setting: Setting) -> None:
    assert setting.generate(1, 3) == setting.generate(1, 3, cache_implementation="static")


def test_audio_is_encoded_once(setting: Setting) -> None:
    calls = count_calls(setting.model.speech_encoder)
    setting.generate(1, 3)
    assert calls == [(2, 85, 32)]  # 1.7 s, the longer of the two, are 85 encoder frames


def test_answers_are_about_the_audio(setting: Setting) -> None:
    setting.instructions = ["Listen."] * 8
    assert len({tuple(answer) for answer in setting.generate(2, 3, 4, 5)}) == 4


def test_beam_search(setting: Setting) -> None:
    model: Any = setting.model
    inputs = setting.inputs(1, 3)
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": 4, "num_return_sequences": 4}
    output = model.generate(**inputs, **settings, return_dict_in_generate=True, output_scores=True, length_penalty=0.0)
    assert output.sequences.shape[0] == 8
    scores = output.sequences_scores.view(2, 4)
    assert bool((scores[:, :-1] >= scores[:, 1:]).all())
    # What beam search says a sequence scores is what the model gives it, its audio included.
    length = inputs["input_ids"].shape[1]
    for row in range(2):
        best = output.sequences[4 * row]
        batch = {key: value[row : row + 1] for key, value in inputs.items() if key.startswith("input_features")}
        mask = torch.cat([inputs["attention_mask"][row], torch.ones(len(best) - length, dtype=torch.int64)])
        with torch.no_grad():
            logits = setting.model(input_ids=best[None], attention_mask=mask[None], **batch).logits[0, length - 1 : -1]
        # Beam search normalizes scores before it takes out the tokens that are suppressed.
        said = best[length:]
        log_probs = torch.log_softmax(logits, dim=-1)[torch.arange(len(said)), said]
        end = (said == setting.processor.tokenizer.eos_token_id).nonzero()
        stop = int(end[0]) + 1 if len(end) else len(said)
        assert float(log_probs[:stop].sum()) == pytest.approx(float(scores[row, 0]), abs=1e-3)


def test_sampling(setting: Setting) -> None:
    greedy = setting.generate(1, 3)
    torch.manual_seed(0)
    first = setting.generate(1, 3, do_sample=True, temperature=3.0)
    torch.manual_seed(0)
    assert setting.generate(1, 3, do_sample=True, temperature=3.0) == first
    assert first != greedy
    assert setting.generate(1, 3, do_sample=True, top_k=1) == greedy
    assert len(setting.generate(1, do_sample=True, num_return_sequences=3)) == 3


def test_streaming(setting: Setting) -> None:
    tokenizer = setting.processor.tokenizer
    # Random bytes are rarely text: keep to letters and the space, at which the streamer hands a word on.
    letters = tokenizer.convert_tokens_to_ids([*"abcdefghijklmnopqrstuvwxyz", "Ġ"])
    settings = {"suppress_tokens": sorted(set(range(len(tokenizer))) - set(letters)), "max_new_tokens": 100}
    [expected] = setting.generate(4, **settings)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = threading.Thread(target=setting.generate, args=(4,), kwargs={"streamer": streamer, **settings})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == tokenizer.decode(expected)
    assert len([piece for piece in pieces if piece]) > 1


def test_assisted_by_another_audio_model(setting: Setting) -> None:
    assistant, _ = setting.factory(setting.kind, seed=1)
    assert setting.generate(4, assistant_model=assistant) == setting.generate(4)


def test_an_assistant_hears_the_audio(setting: Setting) -> None:
    """A copy of the model drafts what the model says, if it hears the same; then most passes are the assistant's."""
    [expected] = setting.generate(4)
    assistant, _ = setting.factory(setting.kind)
    assistant.generation_config.num_assistant_tokens = 5
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    passes = count_calls(setting.model.get_input_embeddings())
    heard = count_calls(assistant.speech_encoder)
    assert setting.generate(4, assistant_model=assistant) == [expected]
    # Each pass of the model confirms five drafted tokens and adds one of its own.
    assert len(passes) == -(-len(expected) // 6)
    assert len(heard) == 1


def test_assisted_by_the_prompt(setting: Setting) -> None:
    setting.instructions[4] = "Say abcabcabcabc, abcabcabc."
    assert setting.generate(4, prompt_lookup_num_tokens=4) == setting.generate(4)


def test_generate_from_stored_encoder_frames(setting: Setting) -> None:
    inputs = setting.inputs(1, 3)
    with torch.no_grad():
        frames, mask = setting.model.encode(inputs["input_features"], inputs["input_features_mask"])
    model: Any = setting.model
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        encoder_frames=frames,
        encoder_frames_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    assert output[:, inputs["input_ids"].shape[1] :].tolist() == setting.generate(1, 3)


def test_no_answer_holds_the_audio_token(setting: Setting) -> None:
    audio = setting.processor.audio_token_id
    llm: Any = setting.model.language_model
    with torch.no_grad():
        llm.lm_head.weight = torch.nn.Parameter(llm.lm_head.weight.clone())
        llm.lm_head.weight[audio] = 10 * llm.lm_head.weight[audio].sign()
    assert all(audio not in answer for answer in setting.generate(2, 3, 4))


def test_a_batch_of_8_is_8_batches_of_1(setting: Setting) -> None:
    """Clips from 0.1 to 33 s, below and above the 30 s that Whisper takes at once."""
    lm = AudioLM(setting.model, setting.processor)
    together = lm.answer(setting.clips, setting.instructions, max_new_tokens=NEW_TOKENS)
    alone = [
        lm.answer([clip], [instruction], max_new_tokens=NEW_TOKENS)[0]
        for clip, instruction in zip(setting.clips, setting.instructions, strict=True)
    ]
    assert together == alone
    assert len({answer.text for answer in alone}) == 8


def test_padding_in_the_batch_changes_no_logit(setting: Setting) -> None:
    with torch.no_grad():
        together = setting.model(**setting.inputs(*range(8)), logits_to_keep=1).logits[:, 0]
        alone = torch.cat([setting.model(**setting.inputs(row), logits_to_keep=1).logits[:, 0] for row in range(8)])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)
