"""Names → a model, and model folders in and out: whole or not at all, and never with other weights than were meant."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from stapes.assembly import build, file_bytes, load_model, part_of, save_model
from stapes.compress.merge import merge_adapters
from stapes.errors import ModelFolderError, StapesError, WeightsError
from stapes.model import ConnectorConfig, StapesForConditionalGeneration, StapesProcessor
from stapes.model.speech_encoder import SpeechEncoder
from stapes.model.speller import Speller
from stapes.parts import load_language_model

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]

MLP = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=64)
CTC = ConnectorConfig(
    kind="ctc_compressor",
    frames_per_window=8,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    ctc_merges=0,
)
QFORMER = ConnectorConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
WHISPER = WhisperConfig(
    d_model=32,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=64,
    vocab_size=64,
    num_mel_bins=80,
    pad_token_id=1,
    bos_token_id=1,
    eos_token_id=1,
    decoder_start_token_id=1,
)


@pytest.fixture(scope="session")
def parts(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model_and_processor: ModelFactory,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A folder with `whisper/` and `llm/`; copy what you change."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(7)
    WhisperForConditionalGeneration(WHISPER).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "whisper")
    llm: Any = tiny_model_and_processor()[0].language_model
    llm.generation_config.temperature = 0.6
    llm.generation_config.do_sample = True
    llm.generation_config.eos_token_id = 256
    llm.save_pretrained(folder / "llm")
    tiny_tokenizer.save_pretrained(folder / "llm")
    return folder


@pytest.fixture
def own_parts(parts: Path, tmp_path: Path) -> Path:
    """A copy of the parts to change."""
    return Path(shutil.copytree(parts, tmp_path / "parts"))


def build_from(folder: Path, connector: ConnectorConfig = MLP, **settings: Any) -> tuple[Any, StapesProcessor]:
    return build(str(folder / "whisper"), str(folder / "llm"), connector, **settings)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
def logits_of(model: StapesForConditionalGeneration, processor: StapesProcessor, speech_like: Waveforms) -> Tensor:
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"])
    return model(**inputs).logits


# Building


@pytest.mark.parametrize("connector", [MLP, QFORMER])
def test_parts_are_joined_as_they_are(parts: Path, connector: ConnectorConfig) -> None:
    model, processor = build_from(parts, connector)
    whisper = load_file(parts / "whisper" / "model.safetensors")
    encoder = {name.removeprefix("model.encoder."): t for name, t in whisper.items() if name.startswith("model.enc")}
    assert encoder.keys() == model.speech_encoder.state_dict().keys()
    assert all(torch.equal(model.speech_encoder.state_dict()[name], tensor) for name, tensor in encoder.items())
    llm = load_file(parts / "llm" / "model.safetensors")
    assert all(torch.equal(model.language_model.state_dict()[name], tensor) for name, tensor in llm.items())
    assert not any(module.training for module in model.modules())
    assert model.config.sources == {"speech_encoder": str(parts / "whisper"), "llm": str(parts / "llm")}
    assert (processor.frames_per_window, processor.tail) == (connector.frames_per_window, "pad")
    for part in (model.speech_encoder, model.language_model):
        assert part.config._attn_implementation == "sdpa"


def test_the_vocabulary_does_not_grow(parts: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model, processor = build_from(parts)
    assert len(processor.tokenizer) == len(tiny_tokenizer) == model.get_input_embeddings().num_embeddings == 262
    # `..._1` is the padding token already.
    assert processor.audio_token == "<|reserved_special_token_0|>"
    assert model.config.audio_token_id == processor.audio_token_id == 259
    assert processor.tokenizer.pad_token_id == 260


def test_generation_is_greedy_and_ends_where_the_llm_does(parts: Path) -> None:
    model, _ = build_from(parts)
    generation = model.generation_config
    assert (generation.do_sample, generation.temperature) == (None, None)
    # The LLM's own end symbol, and that of the chat.
    assert generation.eos_token_id == [256, 258]
    assert (generation.pad_token_id, generation.suppress_tokens) == (260, [259])


def test_clips_are_padded_to_what_is_asked(parts: Path, tmp_path: Path) -> None:
    clip = [np.zeros(16_000, dtype=np.float32)]
    for pad_audio_to_s, num_frames in ((None, 100), (30.0, 3000), (2.5, 250)):
        model, processor = build_from(parts, pad_audio_to_s=pad_audio_to_s)
        assert processor.feature_extractor(clip)["input_features"].shape == (1, 80, num_frames)
        folder = tmp_path / f"model-{num_frames}"
        save_model(model, processor, folder)
        again = load_model(folder)[1]
        assert again.feature_extractor(clip)["input_features"].shape == (1, 80, num_frames)


def test_only_the_connector_is_drawn(parts: Path) -> None:
    first, again, other = (build_from(parts, QFORMER, seed=seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    different = {name.partition(".")[0] for name in first if not torch.equal(first[name], other[name])}
    assert different == {"connector"}


def test_a_dtype_is_for_all_parts(parts: Path, tmp_path: Path) -> None:
    save_model(*build_from(parts), tmp_path / "model", trained_only=True)
    model, processor = load_model(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits_of(model, processor, lambda duration_s, _: np.zeros(int(16_000 * duration_s))).dtype == torch.bfloat16


@pytest.mark.parametrize("whole", [WhisperForConditionalGeneration, WhisperModel, SpeechEncoder])
def test_a_whisper_may_be_whole_bare_or_an_encoder(own_parts: Path, whole: Any, parts: Path) -> None:
    folder = own_parts / "whisper"
    (folder / "model.safetensors").unlink()
    trained = WhisperForConditionalGeneration.from_pretrained(parts / "whisper")
    model = trained
    if whole is WhisperModel:
        model = trained.model
    elif whole is SpeechEncoder:
        model = SpeechEncoder(WHISPER)
        model.load_state_dict(trained.model.encoder.state_dict())
    model.save_pretrained(folder)
    found = build_from(own_parts)[0].speech_encoder.state_dict()
    expected = trained.model.encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_mlp_tokens_begin_at_the_size_of_the_llms_embeddings(own_parts: Path, speech_like: Waveforms) -> None:
    model, processor = build_from(own_parts)
    inputs = processor.prepare([speech_like(3.0, 0)], ["Hi?"])
    tokens = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(tokens.pow(2).mean().sqrt(), table.pow(2).mean().sqrt(), rtol=1e-3, atol=0)
    # Gemma multiplies what it looks up by the square root of its width, 8 here.
    config = Gemma3TextConfig(
        vocab_size=262, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, head_dim=16
    )
    gemma = Gemma3ForCausalLM(config)
    gemma.save_pretrained(own_parts / "llm")
    model, _ = build_from(own_parts)
    table = model.get_input_embeddings().weight
    expected = 8 * table.pow(2).mean().sqrt()
    torch.testing.assert_close(model.connector.norm_out.weight, expected.expand(64), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("chat", "<|im_start|>user\n{audio}\nHi?<|im_end|>\n<|im_start|>assistant\n"),
        ("plain", "<|im_start|>USER: <Speech>{audio}</Speech> Hi?\nASSISTANT:"),
        ("Q: {instruction} {audio} A:", "Q: Hi? {audio} A:"),
    ],
)
def test_prompts(parts: Path, prompt: str, expected: str) -> None:
    _, processor = build_from(parts, prompt=prompt)
    assert processor.build_prompt("Hi?") == expected.replace("{audio}", "<|reserved_special_token_0|>")


def test_a_chat_needs_a_template(own_parts: Path) -> None:
    (own_parts / "llm" / "chat_template.jinja").unlink()
    with pytest.raises(ModelFolderError, match=r"llm: the LLM's tokenizer has no chat template; use `prompt: plain`"):
        build_from(own_parts)
    build_from(own_parts, prompt="plain")
    with pytest.raises(ModelFolderError, match=r"llm: prompt_template wants \{audio\} once, not 0 times$"):
        build_from(own_parts, prompt="{instruction}")


def test_the_audio_token_may_be_named(parts: Path) -> None:
    assert build_from(parts, audio_token="<|reserved_special_token_2|>")[0].config.audio_token_id == 261
    for token, message in [
        ("<|audio|>", r"llm: audio_token '<\|audio\|>' is not a token that the tokenizer keeps whole; choose another$"),
        ("<|im_end|>", r"llm: '<\|im_end\|>' is its tokenizer's eos_token; choose another `model\.audio_token`$"),
        ("<|reserved_special_token_1|>", r"'<\|reserved_special_token_1\|>' is its tokenizer's pad_token; choose"),
    ]:
        with pytest.raises(ModelFolderError, match=message):
            build_from(parts, audio_token=token)


def test_few_tokens_to_spare(own_parts: Path) -> None:
    """The first is for audio, the second for padding; without a second one the end symbol is, and masked as ever."""
    path = own_parts / "llm" / "tokenizer_config.json"
    change_json(path, pad_token="<|im_end|>")
    _, processor = build_from(own_parts)
    assert (processor.audio_token_id, processor.tokenizer.pad_token_id) == (259, 260)
    tokenizer = (own_parts / "llm" / "tokenizer.json").read_text()
    for number in (1, 2):
        tokenizer = tokenizer.replace(f"<|reserved_special_token_{number}|>", f"<|special_{number}_to_someone|>")
    (own_parts / "llm" / "tokenizer.json").write_text(tokenizer)
    model, processor = build_from(own_parts)
    assert (processor.audio_token_id, processor.tokenizer.pad_token_id) == (259, 258)
    assert model.generation_config.pad_token_id == 258
    tokenizer = tokenizer.replace("<|reserved_special_token_0|>", "<|special_0_to_someone|>")
    (own_parts / "llm" / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(ModelFolderError, match=r"llm: its tokenizer has no reserved token that stapes knows; name a"):
        build_from(own_parts)


def test_a_sound_layer_that_the_encoder_has_not(parts: Path) -> None:
    shape = ConnectorConfig(kind="ctc_compressor", hidden_size=32, num_attention_heads=2, sound_layer=3)
    with pytest.raises(ModelFolderError, match=r"whisper: has 2 layers; sound_layer is 3$"):
        build(str(parts / "whisper"), str(parts / "llm"), shape)


def test_parts_in_each_others_place(parts: Path, tiny_model_folder: Path) -> None:
    whisper, llm = str(parts / "whisper"), str(parts / "llm")
    with pytest.raises(ModelFolderError, match=r"llm: is a `llama` model; a speech encoder must be a Whisper$"):
        build(llm, llm, MLP)
    with pytest.raises(
        ModelFolderError, match=r"whisper: is a `whisper` model; the LLM must be one that reads text alone$"
    ):
        load_language_model(whisper, torch.float32)
    with pytest.raises(
        ModelFolderError, match=r"tiny: is a `stapes` model; the LLM must be one that reads text alone$"
    ):
        build(whisper, str(tiny_model_folder), MLP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("whisper", {"encoder_layers": 3}),
            r"whisper: weights do not fit config\.json: 15 missing: layers\.2\.fc1\.bias",
        ),
        (
            ("whisper", {"encoder_ffn_dim": 32}),
            r"whisper: weights do not fit config\.json: 6 of another shape: layers\.0\.fc",
        ),
        (
            ("llm", {"num_hidden_layers": 3}),
            r"llm: weights do not fit config\.json: 9 missing: model\.layers\.2\.input",
        ),
        (
            ("llm", {"intermediate_size": 96}),
            r"llm: weights do not fit config\.json: 6 of another shape: model\.layers\.0",
        ),
        (("llm", {"tie_word_embeddings": False}), r"llm: weights do not fit config\.json: 1 missing: lm_head\.weight$"),
        (("llm", {"model_type": "llama5"}), r"llm: cannot be read: .*llama5.*; copy or download it again$"),
    ],
)
def test_a_part_with_gaps_is_not_filled_up(own_parts: Path, changes: tuple[str, dict], message: str) -> None:
    part, config = changes
    change_json(own_parts / part / "config.json", **config)
    with pytest.raises(ModelFolderError, match=message):
        build_from(own_parts)


@pytest.mark.parametrize("part", ["whisper", "llm"])
def test_a_part_that_is_cut_off(own_parts: Path, part: str) -> None:
    path = own_parts / part / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFolderError, match=rf"{part}: cannot be read: .*incomplete metadata.*; copy or download"):
        build_from(own_parts)


def test_nothing_is_asked_of_the_network(
    parts: Path, tmp_path: Path, speech_like: Waveforms, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(*arguments: Any) -> None:
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", lambda _self, address: refuse(address))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model, processor = build_from(parts)
    save_model(model, processor, tmp_path / "whole")
    save_model(model, processor, tmp_path / "part", trained_only=True)
    for name in ("whole", "part"):
        logits_of(*load_model(tmp_path / name), speech_like)
    assert asked == []


# Folders


@pytest.mark.parametrize("connector", [MLP, QFORMER])
@pytest.mark.parametrize("trained_only", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_folder_gives_back_the_model(
    parts: Path, tmp_path: Path, speech_like: Waveforms, connector: ConnectorConfig, trained_only: bool, lora: bool
) -> None:
    model, processor = build_from(parts, connector, pad_audio_to_s=2.0, seed=5)
    model.config.trained_parts = ["connector"]
    if lora:
        model.add_lora(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
        model.config.trained_parts = ["connector", "lora"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part_of(name) in model.config.trained_parts:
                parameter += 0.1 * torch.randn(parameter.shape)
    save_model(model, processor, tmp_path / "model", trained_only=trained_only)
    back, back_processor = load_model(tmp_path / "model")
    assert torch.equal(logits_of(back, back_processor, speech_like), logits_of(model, processor, speech_like))
    assert not any(module.training for module in back.modules())
    assert back.generation_config.to_dict() == model.generation_config.to_dict()
    assert back.config.sources == model.config.sources
    # And what was loaded can be saved again.
    save_model(back, back_processor, tmp_path / "again", trained_only=trained_only)
    again, _ = load_model(tmp_path / "again")
    assert torch.equal(logits_of(again, processor, speech_like), logits_of(model, processor, speech_like))


def test_of_an_encoder_whose_last_layer_learnt_a_folder_holds_that_layer(
    parts: Path, tmp_path: Path, speech_like: Waveforms
) -> None:
    model, processor = build_from(parts)
    model.config.trained_parts, model.config.trained_speech_layers = ["connector", "speech_encoder"], 1
    learns = ("speech_encoder.layers.1.", "speech_encoder.layer_norm.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(learns):
                parameter += 0.1 * torch.randn(parameter.shape)
    save_model(model, processor, tmp_path / "model", trained_only=True)
    held = load_file(tmp_path / "model" / "trained.safetensors")
    assert {name for name in held if name.startswith("speech_encoder.")} == {
        name for name in model.state_dict() if name.startswith(learns)
    }
    back, _ = load_model(tmp_path / "model")
    assert torch.equal(logits_of(back, processor, speech_like), logits_of(model, processor, speech_like))


@pytest.mark.parametrize("llm_learnt", [False, True])
def test_the_rows_that_ctc_is_taught_against_are_the_llms_own(
    parts: Path, tmp_path: Path, speech_like: Waveforms, llm_learnt: bool
) -> None:
    model, processor = build_from(parts, CTC)
    if llm_learnt:  # then its table may no longer be the one that CTC was taught against
        model.config.trained_parts = ["connector", "language_model"]
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)
    save_model(model, processor, tmp_path / "model", trained_only=True)
    rows = "connector.token_embeddings.weight"
    assert (rows in load_file(tmp_path / "model" / "trained.safetensors")) == llm_learnt
    back, back_processor = load_model(tmp_path / "model")
    assert torch.equal(back.connector.token_embeddings.weight, model.connector.token_embeddings.weight)
    assert torch.equal(logits_of(back, back_processor, speech_like), logits_of(model, processor, speech_like))


@pytest.mark.parametrize("trained_only", [True, False])
def test_letters_of_pieces_follow_from_the_vocabulary(
    parts: Path, tmp_path: Path, speech_like: Waveforms, trained_only: bool
) -> None:
    model, processor = build_from(parts, ConnectorConfig(**{**CTC.to_dict(), "ctc_spelling": 4}))
    speller = model.connector.speller
    assert isinstance(speller, Speller)
    assert speller.spelling.count_nonzero() == 28  # a letter each
    assert not speller.to_letters.weight.any()  # it begins without a say
    torch.nn.init.normal_(speller.to_letters.weight)
    save_model(model, processor, tmp_path / "model", trained_only=trained_only)
    held = load_file(tmp_path / "model" / ("trained.safetensors" if trained_only else "model.safetensors"))
    assert ("connector.speller.spelling" in held) != trained_only
    back, back_processor = load_model(tmp_path / "model")
    assert torch.equal(logits_of(back, back_processor, speech_like), logits_of(model, processor, speech_like))
    if trained_only:
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        connector = {**config["connector_config"], "num_letter_groups": 27}
        change_json(tmp_path / "model" / "config.json", connector_config=connector)
        with pytest.raises(ModelFolderError, match=r"connector\.speller\.groups\.weight"):
            load_model(tmp_path / "model")


@pytest.mark.parametrize("trained_only", [True, False])
@pytest.mark.parametrize("symbols", ["letters", "phones"])
def test_what_hears_letters_or_phones_comes_back(parts: Path, tmp_path: Path, symbols: str, trained_only: bool) -> None:
    model, processor = build_from(parts, ConnectorConfig(**{**CTC.to_dict(), f"ctc_{symbols}": 64}))
    save_model(model, processor, tmp_path / "model", trained_only=trained_only)
    back, _ = load_model(tmp_path / "model")
    ours, theirs = back.connector.state_dict(), model.connector.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert any(name.startswith(f"{symbols}.") for name in ours)


def test_a_tokenizer_that_spells_other_pieces_is_refused(parts: Path, tmp_path: Path) -> None:
    model, processor = build_from(parts, CTC)
    save_model(model, processor, tmp_path / "model", trained_only=True)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    connector = {**config["connector_config"], "num_ctc_tokens": 5}
    change_json(tmp_path / "model" / "config.json", connector_config=connector)
    with pytest.raises(ModelFolderError, match="its tokenizer spells 28 pieces, its connector hears 5"):
        load_model(tmp_path / "model")


def test_a_configuration_names_the_parts_and_not_where_they_lie(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a Hub id: the name leads to a folder of this machine.
    monkeypatch.chdir(parts)
    model, processor = build("whisper", "llm", MLP)
    save_model(model, processor, tmp_path / "align", trained_only=True)
    config = json.loads((tmp_path / "align" / "config.json").read_text())
    named = [config[part]["_name_or_path"] for part in ("speech_config", "text_config")]
    assert named == ["whisper", "llm"]
    assert str(parts) not in (tmp_path / "align" / "config.json").read_text()


def test_a_trained_part_folder_holds_what_was_trained(parts: Path, tmp_path: Path) -> None:
    model, processor = build_from(parts)
    model.add_lora(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    model.config.trained_parts = ["connector", "lora"]
    save_model(model, processor, tmp_path / "tune", trained_only=True)
    tensors = load_file(tmp_path / "tune" / "trained.safetensors")
    assert {part_of(name) for name in tensors} == {"connector", "lora"}
    assert len(tensors) == 5 + 2 * 2 * 2
    base = json.loads((tmp_path / "tune" / "base_weights.json").read_text())
    assert {part: entry["source"] for part, entry in base.items()} == {
        "speech_encoder": {"name": "whisper", "from": "folder"},
        "llm": {"name": "llm", "from": "folder"},
    }
    own = sum(path.stat().st_size for path in (tmp_path / "tune").iterdir())
    others = sum((parts / part / "model.safetensors").stat().st_size for part in ("whisper", "llm"))
    assert file_bytes(tmp_path / "tune") == own + others
    save_model(model, processor, tmp_path / "whole")
    assert file_bytes(tmp_path / "whole") == sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())


def test_a_trained_part_needs_the_weights_it_was_trained_on(
    own_parts: Path, tmp_path: Path, speech_like: Waveforms
) -> None:
    model, processor = build_from(own_parts)
    save_model(model, processor, tmp_path / "align", trained_only=True)
    llm: Any = LlamaForCausalLM.from_pretrained(own_parts / "llm")
    with torch.no_grad():
        llm.model.norm.weight += 0.1
    llm.save_pretrained(own_parts / "llm")
    with pytest.raises(
        ModelFolderError,
        match=r"align: was trained on other weights of `.*/llm` than those in .*/llm; get them back, or del",
    ):
        load_model(tmp_path / "align")
    (tmp_path / "align" / "base_weights.json").unlink()
    back, _ = load_model(tmp_path / "align")
    assert torch.equal(back.language_model.state_dict()["model.norm.weight"], llm.model.norm.weight)
    shutil.rmtree(own_parts / "llm")
    with pytest.raises(WeightsError, match=r"/llm`: no such folder, and not a Hub id"):
        load_model(tmp_path / "align")


def test_a_trained_part_that_does_not_fit(parts: Path, tmp_path: Path) -> None:
    model, processor = build_from(parts)
    folder = tmp_path / "align"
    save_model(model, processor, folder, trained_only=True)
    tensors = load_file(folder / "trained.safetensors")
    for changed, message in [
        (
            {**tensors, "connector.extra": torch.zeros(1)},
            r"align: weights do not fit config\.json: 1 unexpected: connector\.ex",
        ),
        ({**tensors, "connector.norm_in.weight": torch.zeros(3)}, r": 1 of another shape: connector\.norm_in\.weight$"),
        (
            {n: t for n, t in tensors.items() if "norm" not in n},
            r": 3 missing: connector\.norm_in\.weight, connector\.norm_m",
        ),
    ]:
        save_file(changed, folder / "trained.safetensors")
        with pytest.raises(ModelFolderError, match=message):
            load_model(folder)
    (folder / "trained.safetensors").write_bytes(b"\0" * 7)
    with pytest.raises(
        ModelFolderError, match=r"align/trained\.safetensors: cannot be read: .*; copy or download it again$"
    ):
        load_model(folder)
    change_json(folder / "config.json", sources=None)
    with pytest.raises(
        ModelFolderError, match=r"align: config\.json names no `sources` for the weights that trained\."
    ):
        load_model(folder)


# What people do to folders


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "tiny"))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors",
    ],
)
def test_a_folder_without_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    message = (
        "holds neither model.safetensors nor trained.safetensors"
        if name == "model.safetensors"
        else f"{name} is missing"
    )
    with pytest.raises(ModelFolderError) as raised:
        load_model(folder)
    assert str(raised.value) == f"{folder}: {message}; the copy or download is incomplete"


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors",
    ],
)
def test_a_folder_with_a_file_cut_off(folder: Path, name: str, keep: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(StapesError) as raised:
        load_model(folder)
    assert str(folder) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, r"tiny: config\.json describes a `llama` model, not a stapes one$"),
        ({"model_type": None}, r"tiny: config\.json describes a `None` model, not a stapes one$"),
        ({"audio_token_id": "<audio>"}, r"tiny: cannot be read: Validation error for field 'audio_token_id': "),
        (
            {"lora": {"r": 2, "target_modules": ["q_proj"]}},
            r"tiny: weights do not fit config\.json: 6 missing: language_model",
        ),
        (
            {"lora": {"r": 2, "target_modules": ["nothing"]}},
            r"tiny: cannot be read: .*nothing.*; copy or download it again$",
        ),
    ],
)
def test_a_folder_with_another_configuration(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_json(folder / "config.json", **changes)
    with pytest.raises(ModelFolderError, match=message) as raised:
        load_model(folder)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "text_config",
            {"num_hidden_layers": 3},
            r"do not fit config\.json: 9 missing: language_model\.model\.layers\.2\.",
        ),
        (
            "text_config",
            {"num_hidden_layers": 1},
            r"do not fit config\.json: 9 unexpected: language_model\.model\.layers\.1\.",
        ),
        (
            "text_config",
            {"intermediate_size": 96},
            r"do not fit config\.json: 6 of another shape: language_model\.model\.l",
        ),
        ("connector_config", {"kind": "conv"}, r"tiny: cannot be read: Validation error for field 'kind': "),
        ("connector_config", {"hidden_size": 33}, r"tiny: cannot be read: .*hidden_size 33 does not divide by 2 heads"),
        (
            "text_config",
            {"model_type": "llama5"},
            r"tiny: cannot be read: Unrecognized model type for subconfig: llama5",
        ),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, part: str, changes: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", **{part: {**config[part], **changes}})
    with pytest.raises(ModelFolderError, match=message) as raised:
        load_model(folder)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 700


def test_a_configuration_that_is_no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    with pytest.raises(
        ModelFolderError, match=r"config\.json: holds no JSON object; copy or download the folder again$"
    ):
        load_model(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"nowhere: no such model folder$"):
        load_model(tmp_path / "nowhere")


def test_a_folder_without_a_shard(tiny_model_and_processor: ModelFactory, tmp_path: Path) -> None:
    model, processor = tiny_model_and_processor()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    processor.save_pretrained(tmp_path)
    load_model(tmp_path)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelFolderError, match=rf"cannot be read: .*{shard.name}.*; copy or download it again$"):
        load_model(tmp_path)


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_pickle_is_never_opened(folder: Path, own_parts: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    for model_folder in (folder, own_parts / "whisper", own_parts / "llm"):
        torch.save({"weight": _Bomb(marker)}, model_folder / "pytorch_model.bin")
        (model_folder / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"tiny: holds neither model\.safetensors nor trained\.safetensors"):
        load_model(folder)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle, which is not read"):
        build_from(own_parts)
    assert not marker.exists()


def test_a_folder_in_half_precision(folder: Path) -> None:
    model, _ = load_model(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# Adapters added to the weights


def save_adapted(parts: Path, folder: Path, **settings: Any) -> Path:
    """Write a trained-part folder whose adapters are trained, that is: not zero."""
    model, processor = build_from(parts)
    model.add_lora(**{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings})
    model.config.trained_parts = ["connector", "lora"]
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(model, processor, folder, trained_only=True)
    return folder


def test_adapters_are_added_to_the_weights_on_request(parts: Path, tmp_path: Path, speech_like: Waveforms) -> None:
    folder = save_adapted(parts, tmp_path / "tune")
    beside, processor = load_model(folder)
    folded, _ = load_model(folder, fold_lora=True)
    expected = logits_of(beside, processor, speech_like)
    torch.testing.assert_close(logits_of(folded, processor, speech_like), expected, atol=1e-4, rtol=1e-5)
    assert folded.config.lora is None
    assert folded.config.trained_parts == ["connector", "language_model"]
    # The very weights that merging gives, and none beside them.
    merge_adapters(beside)
    merged = beside.state_dict()
    assert folded.state_dict().keys() == merged.keys()
    for name, tensor in folded.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=1e-6)
    # What was loaded so can be saved, and is itself again.
    save_model(folded, processor, tmp_path / "again", trained_only=True)
    again, _ = load_model(tmp_path / "again", fold_lora=True)
    assert torch.equal(logits_of(again, processor, speech_like), logits_of(folded, processor, speech_like))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}},
        {"target_modules": r".*\.layers\.1\..*_proj"},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
)
def test_adapters_that_cannot_simply_be_added_stay(
    parts: Path, tmp_path: Path, speech_like: Waveforms, settings: dict[str, Any]
) -> None:
    folder = save_adapted(parts, tmp_path / "tune", **settings)
    beside, processor = load_model(folder)
    asked, _ = load_model(folder, fold_lora=True)
    assert asked.config.lora == beside.config.lora is not None
    assert torch.equal(logits_of(asked, processor, speech_like), logits_of(beside, processor, speech_like))


def test_an_adapter_of_a_head_that_is_the_embeddings_stays(parts: Path, tmp_path: Path) -> None:
    folder = save_adapted(parts, tmp_path / "tune", target_modules=["lm_head", "q_proj"])
    model, _ = load_model(folder, fold_lora=True)
    assert model.language_model.config.tie_word_embeddings
    assert model.config.lora is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.pop(name), "1 missing: language_model.model.layers.0.mlp.down_proj.lora_A"),
        (lambda tensors, name: tensors.update({f"{name}2": tensors[name].clone()}), "1 unexpected: language_model"),
        (lambda tensors, name: tensors.update({name: tensors[name][:1].clone()}), "1 of another shape: language_model"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    parts: Path, tmp_path: Path, change: Callable[[dict[str, Tensor], str], None], message: str
) -> None:
    folder = save_adapted(parts, tmp_path / "tune")
    tensors = load_file(folder / "trained.safetensors")
    change(tensors, "language_model.model.layers.0.mlp.down_proj.lora_A.default.weight")
    save_file(tensors, folder / "trained.safetensors", metadata={"format": "pt"})
    for fold_lora in (False, True):
        with pytest.raises(ModelFolderError, match=message):
            load_model(folder, fold_lora=fold_lora)


def test_a_model_that_only_answers_does_without_peft(parts: Path, tmp_path: Path) -> None:
    folder = save_adapted(parts, tmp_path / "tune")
    code = (
        "import sys, stapes\n"
        "lm = stapes.load(sys.argv[1], device='cpu')\n"
        "assert lm.model.config.lora is None\n"
        "print([name for name in ('peft', 'bitsandbytes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
