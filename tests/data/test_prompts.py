"""Instructions: the sample's own, one fixed wording for testing, several for training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# The module, because pytest takes an imported `test_instruction` for a test.
from stapes.data import prompts
from stapes.data.sample import TASKS, Sample, Task
from stapes.inference import AudioLM

ASR = Sample("a", Path("a.wav"), 1.0, "asr", None, "hello", where="m.jsonl:3")


def test_every_task_has_its_instructions() -> None:
    assert prompts.TRAIN_INSTRUCTIONS.keys() == set(TASKS)
    assert prompts.TEST_INSTRUCTIONS.keys() == {"asr", "audiocaption"}
    for task, wording in prompts.TEST_INSTRUCTIONS.items():
        assert wording in prompts.TRAIN_INSTRUCTIONS[task]
    wordings = [wording for task in TASKS for wording in prompts.TRAIN_INSTRUCTIONS[task]]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize("task", ["asr", "audiocaption"])
def test_one_wording_for_testing(task: Task) -> None:
    assert prompts.test_instruction(replace(ASR, task=task)) == prompts.TEST_INSTRUCTIONS[task]


@pytest.mark.parametrize("task", ["asr", "audiocaption", "qa"])
def test_a_samples_own_prompt_comes_first(task: Task) -> None:
    sample = replace(ASR, task=task, prompt="Is it loud?")
    assert prompts.test_instruction(sample) == "Is it loud?"
    assert {prompts.train_instruction(sample, seed) for seed in range(20)} == {"Is it loud?"}


def test_a_question_without_words_is_refused() -> None:
    sample = replace(ASR, task="qa")
    with pytest.raises(ValueError, match=r"^m\.jsonl:3: sample `a` is a question without `prompt`$"):
        prompts.test_instruction(sample)
    with pytest.raises(ValueError, match=r"^m\.jsonl:3: sample `a` is a question without `prompt`$"):
        prompts.train_instruction(sample, 0)


@pytest.mark.parametrize("task", ["asr", "audiocaption"])
def test_wordings_for_training_are_drawn_by_seed(task: Task) -> None:
    sample = replace(ASR, task=task)
    drawn = [prompts.train_instruction(sample, seed) for seed in range(1000)]
    assert drawn == [prompts.train_instruction(sample, seed) for seed in range(1000)]
    wordings = prompts.TRAIN_INSTRUCTIONS[task]
    counts = [drawn.count(wording) for wording in wordings]
    assert sum(counts) == 1000
    assert min(counts) > 0.7 * 1000 / len(wordings)  # each its share


def test_a_prompt_beyond_what_the_llm_was_made_for_is_warned_of_once(
    tiny_model_and_processor: Callable[..., tuple[Any, Any]],
    speech_like: Callable[[float, int], np.ndarray],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lm = AudioLM(*tiny_model_and_processor())
    clips, questions = [speech_like(2.0, 0), speech_like(4.0, 0)], ["Hi?", "Hi?"]
    longest = lm.prepare(clips, questions)[0]["input_ids"].shape[1]
    lm.model.config.text_config.max_position_embeddings = longest
    lm.answer(clips, questions, max_new_tokens=1)
    assert caplog.messages == []
    lm.model.config.text_config.max_position_embeddings = longest - 1
    for _ in range(2):
        lm.answer(clips, questions, max_new_tokens=1)
    assert caplog.messages == [
        f"audio and question are longer than the {longest - 1} tokens that the LLM was made for "
        "(`max_position_embeddings`): answers may be nonsense; ask about shorter pieces of the audio"
    ]
