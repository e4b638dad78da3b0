"""A loaded model in use: what it is asked, what it says, and what it does not take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import stapes
from stapes.data.prompts import TEST_INSTRUCTIONS, TRAIN_INSTRUCTIONS
from stapes.errors import AudioError, ModelFolderError, UsageError
from stapes.inference import Answer, AudioLM, load
from stapes.model import (
    CTCCompressor,
    CTCVocabulary,
    StapesForConditionalGeneration,
    StapesProcessor,
    WordList,
    letter_numbers,
    phone_numbers,
)
from stapes.rounding import rounding_margin

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]


@pytest.fixture
def lm(tiny_model_and_processor: ModelFactory) -> AudioLM:
    return AudioLM(*tiny_model_and_processor())


def force(lm: AudioLM, text: str, *, end: bool = True) -> None:
    """Make a model say `text` whatever it is given, and then end, or go on with spaces."""
    tokenizer = lm.processor.tokenizer
    script = tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if end else tokenizer(" " * 500)["input_ids"])
    steps = iter(script)

    def say(_module: torch.nn.Module, _inputs: Any, output: Any) -> torch.Tensor:
        logits = torch.full_like(output, -100.0)
        logits[..., next(steps)] = 100.0
        return logits

    lm.model.get_output_embeddings().register_forward_hook(say)  # type: ignore[union-attr]  # an LLM has a head


def test_a_folder_is_loaded_ready_to_use(tiny_model_folder: Path, speech_like: Waveforms) -> None:
    lm = stapes.load(tiny_model_folder)
    assert isinstance(lm, AudioLM)
    assert lm.model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not lm.model.training
    assert load(str(tiny_model_folder), device="cpu").ask(speech_like(1.0, 0), "Hi?", max_new_tokens=4) == lm.ask(
        speech_like(1.0, 0), "Hi?", max_new_tokens=4
    )


def test_a_folder_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"nowhere: no such model folder$"):
        stapes.load(tmp_path / "nowhere")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(device: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^device `{device}` cannot be used: "):
        stapes.load(tmp_path / "nowhere", device=device)


def test_answers_are_greedy_whatever_the_generation_settings_say(lm: AudioLM, speech_like: Waveforms) -> None:
    clip = speech_like(1.0, 0)
    greedy = lm.ask(clip, "Hi?", max_new_tokens=8)
    lm.model.generation_config.num_beams = 3
    assert lm.ask(clip, "Hi?", max_new_tokens=8) == greedy


def test_what_is_asked(lm: AudioLM, speech_like: Waveforms, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], dict[str, Any]]] = []
    original = lm.answer

    def note(waveforms: Any, instructions: Any, **generate: Any) -> list[Answer]:
        asked.append((list(instructions), generate))
        return original(waveforms, instructions, **generate)

    monkeypatch.setattr(lm, "answer", note)
    clip = speech_like(1.0, 0)
    lm.transcribe(clip, max_new_tokens=2)
    lm.describe(clip, max_new_tokens=3)
    lm.ask(clip, "Who?", max_new_tokens=4, num_beams=2)
    assert asked == [
        ([TEST_INSTRUCTIONS["asr"]], {"max_new_tokens": 2}),
        ([TEST_INSTRUCTIONS["audiocaption"]], {"max_new_tokens": 3}),
        (["Who?"], {"max_new_tokens": 4, "num_beams": 2}),
    ]


def test_a_file_is_as_good_as_its_samples(lm: AudioLM, speech_like: Waveforms, tmp_path: Path) -> None:
    waveform = speech_like(1.0, 0)
    soundfile.write(tmp_path / "clip.wav", waveform, 16_000, subtype="FLOAT")
    texts = {
        lm.ask(audio, "Hi?", max_new_tokens=8)
        for audio in (waveform, tmp_path / "clip.wav", str(tmp_path / "clip.wav"))
    }
    assert len(texts) == 1
    # Two channels, other rate: mixed and resampled on the way in.
    stereo = np.stack([waveform, waveform], axis=1)
    assert lm.ask(stereo, "Hi?", max_new_tokens=8) in texts


def test_an_answer_ends_where_the_model_says(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, " good morning ")
    assert lm.answer([speech_like(1.0, 0)], ["Hi?"]) == [Answer("good morning", 15, truncated=False)]


def test_an_answer_that_is_cut_off_says_so(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "good morning", end=False)
    assert lm.answer([speech_like(1.0, 0)], ["Hi?"], max_new_tokens=4) == [Answer("good", 4, truncated=True)]


def test_an_answer_has_200_tokens_unless_asked_otherwise(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "", end=False)
    assert lm.answer([speech_like(1.0, 0)], ["Hi?"]) == [Answer("", 200, truncated=True)]


def test_special_tokens_are_not_part_of_the_text(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "a<|im_start|>b")
    assert lm.answer([speech_like(1.0, 0)], ["Hi?"]) == [Answer("ab", 4, truncated=False)]


def test_sampling_and_beams_go_through(lm: AudioLM, speech_like: Waveforms) -> None:
    clips, instructions = [speech_like(1.0, 0), speech_like(2.0, 1)], ["Hi?", "Who?"]
    greedy = lm.answer(clips, instructions, max_new_tokens=8)
    assert lm.answer(clips, instructions, max_new_tokens=8, num_beams=1, do_sample=True, top_k=1) == greedy
    assert len(lm.answer(clips, instructions, max_new_tokens=8, num_beams=3)) == 2


def hearing(
    made: tuple[StapesForConditionalGeneration, StapesProcessor], heard: str, weight: float, likes: str = ""
) -> AudioLM:
    """A model whose CTC hears one symbol, without a pause: a piece, letter or phone, any of those in `heard` alike.

    Its LLM finds all tokens alike, but for those in `likes`, which are e times as likely.
    """
    lm = AudioLM(*made)
    liked = torch.zeros(len(lm.processor.tokenizer))
    liked[[lm.processor.tokenizer.convert_tokens_to_ids(token) for token in likes]] = 1.0
    lm.model.get_output_embeddings().register_forward_hook(lambda *call: torch.zeros_like(call[2]) + liked)  # type: ignore[union-attr]
    connector = lm.model.connector
    assert isinstance(connector, CTCCompressor)
    number = CTCVocabulary(lm.processor.tokenizer, 0).pieces.index(heard[0])
    with torch.no_grad():
        for hearer, numbers in ((connector.letters, letter_numbers), (connector.phones, phone_numbers)):
            if hearer is not None:  # which then knows alone: to pieces all are alike
                hearer.out.weight.zero_()
                hearer.out.bias.zero_()[numbers(heard)] = 1000
        connector.norm_llm.weight.zero_()
        connector.blank.weight.zero_()
        sure = 1000.0 if connector.letters is connector.phones is None else 0.0
        connector.norm_llm.bias.copy_(sure * connector.token_embeddings.weight[number])
    lm.model.config.connector_config.ctc_merges = 0
    lm.model.config.connector_config.ctc_weight = weight
    return lm


@pytest.mark.parametrize("words", [None, {"q": -1.0, "qq": -1.0, "w": -2.0}])
def test_a_transcript_is_what_ctc_hears_as_far_as_it_has_a_say(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms, words: dict[str, float] | None
) -> None:
    clips = [speech_like(1.0, 0), speech_like(2.0, 1), speech_like(1.5, 2)]
    asked = [TEST_INSTRUCTIONS["asr"], "Who?", TRAIN_INSTRUCTIONS["asr"][-1]]
    made = partial(tiny_model_and_processor, "ctc_compressor", ctc_letters=64 if words else 0)
    alone = hearing(made(), "q", 0.0).answer(clips, asked, max_new_tokens=8)
    lm = hearing(made(), "q", 0.9)
    lm.processor.words = WordList(words) if words else None
    guided = lm.answer(clips, asked, max_new_tokens=8)
    # A capital is as good, and comes first. A text that was chosen begins with a space, here a token of its own.
    assert guided[0] == guided[2] == Answer("Q", 3 if words else 2, truncated=False)
    assert alone[0] == alone[1] == alone[2] == guided[1] != guided[0]
    assert lm.transcribe(clips[0], max_new_tokens=8) == "Q"
    assert lm.transcribe(clips[0], max_new_tokens=8, num_beams=3).lower() == "q"
    stream = lm.stream(clips[0], asked[0], max_new_tokens=8)
    assert (list(stream), stream.answer) == (["Q"], guided[0])


def test_the_llm_chooses_among_words_that_are_heard_alike(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    made = partial(tiny_model_and_processor, "ctc_compressor", ctc_letters=64)
    for likes, weight, said in (("", 0.5, "Q"), ("W", 0.5, "W"), ("W", 1.0, "Q"), ("Z", 0.1, "Q")):
        lm = hearing(made(), "qw", weight, likes)
        lm.processor.words = WordList({"q": -1.0, "w": -1.1, "z": -1.0})
        clip = speech_like(1.0, 0)
        assert lm.transcribe(clip, max_new_tokens=8) == said
        assert lm.ask(clip, "Who?", max_new_tokens=3) != said


@pytest.mark.parametrize(
    ("settings", "times"),
    # Beams are copies of a prompt, and other caches are made anew: of what was kept they have no use.
    [({}, 1), ({"num_beams": 2}, 2), ({"use_cache": False}, 2), ({"cache_implementation": "static"}, 2)],
)
def test_the_llm_reads_the_prompt_of_one_clip_once(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms, settings: dict[str, Any], times: int
) -> None:
    lm = hearing(tiny_model_and_processor("ctc_compressor", ctc_letters=64), "qw", 0.5)
    lm.processor.words = WordList({"q": -1.0, "w": -1.1})
    clips, asked = [speech_like(1.0, 0), speech_like(2.0, 1)], [TEST_INSTRUCTIONS["asr"]] * 2
    length = lm.processor.prepare(clips[:1], asked[:1])["input_ids"].shape[1]
    sizes: list[int] = []
    lm.model.language_model.model.register_forward_pre_hook(
        lambda module, inputs, named: sizes.append(
            (named["input_ids"] if named.get("inputs_embeds") is None else named["inputs_embeds"]).shape[1]
        ),
        with_kwargs=True,
    )
    alone = lm.answer(clips[:1], asked[:1], max_new_tokens=8, **settings)
    assert sizes.count(length) == times
    assert lm.answer(clips, asked, max_new_tokens=8, **settings)[0] == alone[0]


def test_a_chosen_text_is_read_rather_than_written_token_by_token(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    lm = hearing(tiny_model_and_processor("ctc_compressor", ctc_letters=64), "qw", 0.5, "w")
    lm.processor.words = WordList({"w": -1.0, "q": -1.1})
    inputs, guides = lm.prepare([speech_like(14.0, 0)], [TEST_INSTRUCTIONS["asr"]])
    runs: list[int] = []
    lm.model.language_model.model.register_forward_hook(lambda *_: runs.append(1))
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "logits_processor": guides}
    read = lm.model.generate(**inputs, **settings)  # type: ignore[arg-type]  # asks for more than our model has
    said = lm.read(read[0, inputs["input_ids"].shape[1] :].tolist())
    # Six tokens, of letters and spaces, and the end, where the draft has a full stop.
    assert said == Answer("w w w", 7, truncated=False)
    assert len(runs) == 1
    stream = lm.stream(speech_like(14.0, 0), TEST_INSTRUCTIONS["asr"], max_new_tokens=12)
    assert "".join(stream) == "w w w"
    assert (stream.answer, stream.tokens_per_s) == (said, None)  # all at once is no rate


def test_a_long_clip_is_chosen_part_by_part(tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    made = partial(tiny_model_and_processor, "ctc_compressor", ctc_letters=64)
    for likes, said in (("", "Q Q Q"), ("wW", "W W W")):
        lm = hearing(made(), "qw", 0.5, likes)
        lm.processor.words = WordList({"q": -1.0, "w": -1.1})
        # 6, 6 and 2 s: what is heard without a pause is one word in each part.
        assert lm.transcribe(speech_like(14.0, 0), max_new_tokens=12) == said


def test_phones_are_written_as_the_llm_likes(tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    clip = speech_like(1.0, 0)
    words = WordList({"q": -1.0, "w": -1.1, "z": -1.0}, {"q": ["s"], "w": ["s", "t"], "z": ["z"]})
    for likes, said in (("", "Q"), ("W", "W"), ("Z", "Q")):
        lm = hearing(tiny_model_and_processor("ctc_compressor", ctc_phones=64), "s", 0.5, likes)
        lm.processor.words = words
        assert lm.transcribe(clip, max_new_tokens=8) == said
    # Where phones are heard but not known, or known but not heard, letters have their say.
    both = hearing(tiny_model_and_processor("ctc_compressor", ctc_phones=64, ctc_letters=64), "z", 0.5)
    swapped = WordList({"q": -1.0, "z": -1.0}, {"q": ["z"], "z": ["s"]})
    for known, said in ((words, "Z"), (swapped, "Q"), (WordList({"z": -1.0, "q": -2.0}), "Z")):
        both.processor.words = known
        assert both.transcribe(clip, max_new_tokens=8) == said
    unheard = hearing(tiny_model_and_processor("ctc_compressor", ctc_letters=64), "w", 0.5)
    unheard.processor.words = words
    assert unheard.transcribe(clip, max_new_tokens=8) == "W"


def test_letters_have_no_say_where_it_is_not_known_which_words_there_are(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    lm = hearing(tiny_model_and_processor("ctc_compressor", ctc_letters=64), "q", 0.9, likes="b")
    assert lm.transcribe(speech_like(1.0, 0), max_new_tokens=1) != "Q"


@pytest.mark.parametrize("seed", range(4))
def test_a_streamed_answer_is_the_answer(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms, seed: int
) -> None:
    """The words of a random model are random bytes, so most of its text is broken UTF-8: the hardest case."""
    lm = AudioLM(*tiny_model_and_processor(seed=seed))
    clip = speech_like(1.0 + seed, seed)
    (whole,) = lm.answer([clip], ["Hi?"], max_new_tokens=40)
    stream = lm.stream(clip, "Hi?", max_new_tokens=40)
    pieces = list(stream)
    assert "".join(pieces).encode() == whole.text.encode()
    assert "" not in pieces
    assert stream.answer == whole
    assert list(stream) == []


@pytest.mark.parametrize(
    "text",
    [
        "  good\nmorning \n",
        "naïve 日本語 🎉!",
        "a \N{REPLACEMENT CHARACTER} b\N{REPLACEMENT CHARACTER}",
        "a<|im_start|>b",
        "",
    ],
)
def test_pieces_are_never_taken_back(lm: AudioLM, speech_like: Waveforms, text: str) -> None:
    force(lm, text)
    stream = lm.stream(speech_like(1.0, 0), "Hi?")
    pieces = list(stream)
    said = text.replace("<|im_start|>", "").strip()
    assert "".join(pieces) == said
    # One token is one byte here, and a character is not shown before its last one.
    assert len(pieces) >= len(said.split())
    assert stream.answer is not None
    assert not stream.answer.truncated


def test_a_piece_is_there_before_the_next_is_made(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "good morning", end=False)
    stream = lm.stream(speech_like(1.0, 0), "Hi?", max_new_tokens=400)
    assert next(stream) == "g"
    assert (stream.answer, stream.ttft_s is not None) == (None, True)
    stream.close()
    left = list(stream)
    assert len(left) < 300
    assert stream.answer is None


def test_a_streamed_answer_ends_at_a_text_as_the_whole_one_does(lm: AudioLM, speech_like: Waveforms) -> None:
    clip = speech_like(1.0, 0)
    lm.model.generation_config.eos_token_id = None
    endless = lm.answer([clip], ["Hi?"], max_new_tokens=40)[0].text
    stop = endless[4:9]
    assert stop not in endless[:4]
    lm.model.generation_config.stop_strings = stop  # one may stand without a list
    whole = lm.answer([clip], ["Hi?"], max_new_tokens=40)[0]
    assert whole.text == endless[:4].strip()
    stream = lm.stream(clip, "Hi?", max_new_tokens=40)
    assert "".join(stream) == whole.text
    assert stream.answer == whole


def test_an_answer_may_begin_with_its_end(lm: AudioLM, speech_like: Waveforms) -> None:
    lm.model.generation_config.stop_strings = [" USER:"]
    force(lm, " USER: and so on")
    stream = lm.stream(speech_like(1.0, 0), "Hi?")
    assert list(stream) == []
    assert stream.answer is not None
    assert (stream.answer.text, stream.answer.truncated) == ("", False)


def test_what_a_streamed_answer_cost(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "good")
    clip = speech_like(2.0, 0)
    started = perf_counter()
    stream = lm.stream(clip, "Hi?")
    assert (stream.ttft_s, stream.tokens_per_s) == (None, None)
    assert "".join(stream) == "good"
    taken_s = perf_counter() - started
    assert stream.num_audio_tokens == 6  # ceil(100 encoder frames / 17)
    assert stream.ttft_s is not None
    assert stream.tokens_per_s is not None
    # Four letters and the end symbol: four tokens after the first.
    assert 0 < stream.ttft_s < stream.ttft_s + 4 / stream.tokens_per_s <= taken_s


def test_a_single_token_has_no_rate(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "")
    stream = lm.stream(speech_like(1.0, 0), "Hi?")
    assert list(stream) == []
    assert stream.answer == Answer("", 1, truncated=False)
    assert (stream.ttft_s is not None, stream.tokens_per_s) == (True, None)


def test_nothing_is_settled_where_the_tokenizer_rewrites(lm: AudioLM, speech_like: Waveforms) -> None:
    lm.processor.tokenizer.clean_up_tokenization_spaces = True
    force(lm, "I do n't .")
    clip = speech_like(1.0, 0)
    pieces = list(lm.stream(clip, "Hi?"))
    assert len(pieces) == 1


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), r"^audio: holds 0 samples"),
        (np.zeros(399, np.float32), r"^audio: lasts 24\.9 ms; wanted at least 25 ms"),
        (np.full(16_000, np.nan, np.float32), r"^audio: 16000 of 16000 samples are NaN or infinite"),
        ("nowhere.wav", r"^nowhere\.wav: no such file$"),
    ],
)
def test_audio_that_cannot_be_used(lm: AudioLM, audio: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        lm.transcribe(audio)
    with pytest.raises(AudioError, match=message):
        lm.stream(audio, "Hi?")


def test_an_answer_needs_a_lead_that_rounding_cannot_take(lm: AudioLM) -> None:
    assert rounding_margin(lm.model) == 2e-3
    assert rounding_margin(lm.model.bfloat16()) == 0.5  # type: ignore[arg-type]  # transformers' `bfloat16` is loosely typed
