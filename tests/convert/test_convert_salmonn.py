"""Checkpoints of the SALMONN family: the same logits as the published architecture, and nothing taken on trust."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import straight_line
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from stapes.assembly import load_model
from stapes.convert.folders import convert_beats, convert_salmonn
from stapes.convert.salmonn import theirs_of_salmonn
from stapes.errors import WeightsError
from stapes.inference import AudioLM
from stapes.model import BeatsConfig, ConnectorConfig, StapesConfig, StapesForConditionalGeneration, nf4

HIDDEN, INTERMEDIATE, SPEECH, SOUND, LLM = 48, 80, 32, 8, 64
BEATS_CFG = {
    "encoder_layers": 2,
    "encoder_embed_dim": SOUND,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2,
    "layer_norm_first": False,
    "conv_pos": 6,
    "conv_pos_groups": 2,
    "relative_position_embedding": True,
    "num_buckets": 16,
    "max_distance": 40,
    "gru_rel_pos": True,
    "deep_norm": True,
    "embed_dim": 4,
    "input_patch_size": 16,
}
# Outputs and inputs of the LLM's linears: 4 heads of 16, 2 of them for keys and values.
LINEARS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
CONFIG = {
    "model": {
        "llama_path": "meta-llama/Llama-3.2-3B-Instruct",
        "use_speech_Qformer": True,
        "window_level_Qformer": True,
        "second_per_window": 0.333333,
        "second_stride": 0.333333,
        "lora": True,
        "lora_rank": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.1,
        "prompt_template": "USER: {}\nASSISTANT:",
        "end_sym": "</s>",
    }
}
ASK = "Recognize the speech and give me the transcription."


class Files(NamedTuple):
    whisper: Path
    llm: Path
    beats: Path
    beats_checkpoint: dict[str, Any]


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    random = np.random.RandomState(seed)
    return {
        name: torch.from_numpy((random.standard_normal(shape) * (0.3 if len(shape) > 1 else 1)).astype(np.float32))
        for name, shape in shapes.items()
    }


def affine(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def beats_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (4, 1, 16, 16),
        **norm("layer_norm", 4),
        **affine("post_extract_proj", SOUND, 4),
        "encoder.pos_conv.0.weight_g": (1, 1, 6),
        "encoder.pos_conv.0.weight_v": (SOUND, 4, 6),
        "encoder.pos_conv.0.bias": (SOUND,),
        **norm("encoder.layer_norm", SOUND),
        "encoder.layers.0.self_attn.relative_attention_bias.weight": (16, 2),
    }
    for number in range(2):
        layer = f"encoder.layers.{number}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= affine(f"{layer}.self_attn.{name}", SOUND, SOUND)
        shapes |= {f"{layer}.self_attn.grep_a": (1, 2, 1, 1), **affine(f"{layer}.self_attn.grep_linear", 8, SOUND // 2)}
        shapes |= {**norm(f"{layer}.self_attn_layer_norm", SOUND), **norm(f"{layer}.final_layer_norm", SOUND)}
        shapes |= {**affine(f"{layer}.fc1", 12, SOUND), **affine(f"{layer}.fc2", SOUND, 12)}
    return shapes


def salmonn_shapes(sound: bool, targets: list[str]) -> dict[str, tuple[int, ...]]:
    """Lay out what a SALMONN of two layers with LoRA of rank 4 holds."""
    width = SPEECH + (SOUND if sound else 0)
    shapes: dict[str, tuple[int, ...]] = {"speech_query_tokens": (1, 1, HIDDEN), **norm("ln_speech", SPEECH)}
    if sound:
        shapes |= norm("ln_audio", SOUND)
    shapes |= norm("speech_Qformer.bert.embeddings.LayerNorm", HIDDEN)
    for number in range(2):
        layer = f"speech_Qformer.bert.encoder.layer.{number}"
        for name, seen in (("attention", HIDDEN), ("crossattention", width)):
            shapes |= affine(f"{layer}.{name}.self.query", HIDDEN, HIDDEN)
            shapes |= {**affine(f"{layer}.{name}.self.key", HIDDEN, seen)}
            shapes |= {**affine(f"{layer}.{name}.self.value", HIDDEN, seen)}
            shapes |= affine(f"{layer}.{name}.output.dense", HIDDEN, HIDDEN)
            shapes |= norm(f"{layer}.{name}.output.LayerNorm", HIDDEN)
        shapes |= affine(f"{layer}.intermediate_query.dense", INTERMEDIATE, HIDDEN)
        shapes |= affine(f"{layer}.output_query.dense", HIDDEN, INTERMEDIATE)
        shapes |= norm(f"{layer}.output_query.LayerNorm", HIDDEN)
    shapes |= affine("speech_llama_proj", LLM, HIDDEN)
    for number in range(2):
        for target in targets:
            out, into = next(size for name, size in LINEARS.items() if name.endswith(target))
            name = next(name for name in LINEARS if name.endswith(target))
            adapter = f"llama_model.base_model.model.model.layers.{number}.{name}"
            shapes |= {f"{adapter}.lora_A.default.weight": (4, into), f"{adapter}.lora_B.default.weight": (out, 4)}
    return shapes


@pytest.fixture(scope="module")
def files(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("salmonn")
    checkpoint = {"cfg": BEATS_CFG, "model": drawn(beats_shapes(), 1)}
    torch.save(checkpoint, folder / "beats.pt")
    convert_beats(folder / "beats.pt", folder / "beats")
    return Files(parts / "encoder", parts / "llm", folder / "beats", checkpoint)


def checkpoint(sound: bool = True, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> dict[str, Any]:
    return {
        "model": drawn(salmonn_shapes(sound, [*targets]), 2),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 3e-5}]},
        "config": CONFIG,
        "scaler": None,
        "epoch": 3,
    }


def saved(content: Any, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


def extras(files: Files) -> dict[str, Tensor]:
    """List what the original leaves in its files beside what was trained."""
    table = load_file(files.llm / "model.safetensors")["model.embed_tokens.weight"]
    layer = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    return {
        "speech_Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "beats.encoder.layers.1.self_attn.relative_attention_bias.weight": torch.zeros(16, 2),
        # A row more, for padding, and in float16.
        "llama_model.base_model.model.lm_head.weight": torch.cat([table, torch.ones(1, LLM)]).half(),
        f"{layer}.absmax": torch.zeros(4, dtype=torch.uint8),
        f"{layer}.quant_map": torch.zeros(16),
        f"{layer}.nested_absmax": torch.zeros(1),
        f"{layer}.nested_quant_map": torch.zeros(256),
        f"{layer}.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8),
        "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
    }


def converted(files: Files, path: Path, folder: Path, **settings: Any) -> dict[str, str]:
    names = {"speech_encoder": str(files.whisper), "llm": str(files.llm), "sound_encoder": str(files.beats)}
    return convert_salmonn(path, folder, **{**names, **settings})


def straight_logits(files: Files, tensors: dict[str, Tensor], waveform: np.ndarray, sound: bool, alpha: int) -> Tensor:
    """Compute the original's logits for a prompt that asks `ASK` about a clip."""
    whisper = load_file(files.whisper / "model.safetensors")
    llm = load_file(files.llm / "model.safetensors")
    config = json.loads((files.llm / "config.json").read_text())
    mel = WhisperFeatureExtractor(feature_size=80)(waveform, sampling_rate=16_000, return_tensors="pt")
    speech = straight_line.whisper(mel["input_features"][0], whisper, num_heads=2)
    assert speech.shape == (1500, SPEECH)
    heard = None
    if sound:
        at_least_1_s = np.pad(waveform, (0, max(0, 16_000 - len(waveform))))
        heard = straight_line.beats(at_least_1_s, BEATS_CFG, files.beats_checkpoint["model"])
    audio = straight_line.audio_tokens(speech, heard, tensors)
    assert audio.shape == (88, LLM)
    tokenizer = AutoTokenizer.from_pretrained(files.llm)
    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("USER: <Speech>", f"</Speech> {ASK}\nASSISTANT:")
    )
    table = llm["model.embed_tokens.weight"]
    embeddings = straight_line.prompt_embeddings([tokenizer.bos_token_id, *before], audio, after, table)
    return straight_line.llama(embeddings, config, llm, tensors, alpha)


@torch.no_grad()
@pytest.mark.parametrize(
    ("sound", "targets", "duration_s"),
    [
        (True, ("q_proj", "v_proj"), 2.5),
        (True, ("q_proj", "v_proj"), 0.6),
        (False, tuple(name.rpartition(".")[2] for name in LINEARS), 1.7),
        (True, (), 30.0),
    ],
)
def test_the_logits_are_those_of_the_published_architecture(
    files: Files,
    tmp_path: Path,
    speech_like: Callable[[float, int], np.ndarray],
    sound: bool,
    targets: tuple[str, ...],
    duration_s: float,
) -> None:
    original = checkpoint(sound, targets)
    content = {**original, "model": {**original["model"], **extras(files)}}
    converted(files, saved(content, tmp_path), tmp_path / "model", sound_encoder=str(files.beats) if sound else None)
    model, processor = load_model(tmp_path / "model")
    waveform = speech_like(duration_s, 3)
    inputs = processor.prepare([waveform], [ASK])
    assert int((inputs["input_ids"] == processor.audio_token_id).sum()) == 88
    expected = straight_logits(files, original["model"], waveform, sound, CONFIG["model"]["lora_alpha"])
    found = model(**inputs).logits[0]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert float(expected.std()) > 1


@torch.no_grad()
@pytest.mark.parametrize("complete", [False, True])
def test_an_llm_that_is_stored_in_4_bits(
    files: Files, tmp_path: Path, speech_like: Callable[[float, int], np.ndarray], complete: bool
) -> None:
    """As NOTA's teams trained: the adapters lie over the values that the 4 bits stand for."""
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    llm: Any = AutoModelForCausalLM.from_pretrained(files.llm, quantization_config=settings, dtype=torch.float32)
    llm.save_pretrained(tmp_path / "stored")
    llm.dequantize(torch.float32).save_pretrained(tmp_path / "widened")
    original = checkpoint()
    content = {**original, "model": {**original["model"], **extras(files)}}
    found = []
    for name in ("stored", "widened"):
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(files.llm / file, tmp_path / name / file)
        folder = tmp_path / f"model-{name}"
        converted(files, saved(content, tmp_path), folder, llm=str(tmp_path / name), complete=complete)
        model, processor = load_model(folder)
        assert len(list(nf4.layers_of(model))) == (14 if name == "stored" else 0)
        found.append(model(**processor.prepare([speech_like(1.7, 3)], [ASK])).logits)
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)


def test_the_published_size_has_the_published_layout() -> None:
    """SALMONN-3B: Whisper-large-v2, BEATs, Llama-3.2-3B; 27,498,240 weights learn."""
    config = StapesConfig(
        speech_config=WhisperConfig(d_model=1280, encoder_layers=1, encoder_attention_heads=20, encoder_ffn_dim=5120),
        text_config=LlamaConfig(
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=28,
            num_attention_heads=24,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=128_256,
            tie_word_embeddings=True,
        ),
        sound_config=BeatsConfig(num_hidden_layers=1),
        connector_config=ConnectorConfig(frames_per_window=17, tail="drop"),
    )
    with torch.device("meta"):
        model = StapesForConditionalGeneration(config)
        model.add_lora(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    shapes = {
        theirs: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if (theirs := theirs_of_salmonn(name)) is not None
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == 27_498_240
    layer = "speech_Qformer.bert.encoder.layer.1"
    expected = {
        "speech_query_tokens": (1, 1, 768),
        "ln_speech.weight": (1280,),
        "ln_audio.bias": (768,),
        "speech_Qformer.bert.embeddings.LayerNorm.weight": (768,),
        f"{layer}.attention.self.query.weight": (768, 768),
        f"{layer}.attention.output.LayerNorm.bias": (768,),
        f"{layer}.crossattention.self.key.weight": (768, 2048),
        f"{layer}.crossattention.output.dense.weight": (768, 768),
        f"{layer}.intermediate_query.dense.weight": (3072, 768),
        f"{layer}.output_query.dense.weight": (768, 3072),
        f"{layer}.output_query.LayerNorm.weight": (768,),
        "speech_llama_proj.weight": (3072, 768),
        "llama_model.base_model.model.model.layers.27.self_attn.q_proj.lora_A.default.weight": (8, 3072),
        "llama_model.base_model.model.model.layers.27.self_attn.v_proj.lora_B.default.weight": (1024, 8),
    }
    assert {name: shapes[name] for name in expected} == expected


def test_what_has_no_place_is_listed_with_the_reason(files: Files, tmp_path: Path) -> None:
    original = checkpoint()
    content = {**original, "model": {**original["model"], **extras(files)}}
    ignored = converted(files, saved(content, tmp_path), tmp_path / "model")
    assert ignored.keys() == {*extras(files), "optimizer", "scaler", "epoch"}
    assert ignored["llama_model.base_model.model.lm_head.weight"] == (
        "the LLM's table of embeddings once more, which comes with `--llm`"
    )
    assert json.loads((tmp_path / "model" / "conversion.json").read_text())["ignored"] == ignored
    model, _ = load_model(tmp_path / "model")
    table = load_file(files.llm / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.language_model.get_parameter("model.embed_tokens.weight"), table)


@pytest.mark.parametrize("spelling", ["base_model.model.{}.lora_{}.weight", "{}.lora_{}.default.weight"])
def test_adapters_may_be_spelt_as_other_versions_of_peft_do(files: Files, tmp_path: Path, spelling: str) -> None:
    original = checkpoint()
    tensors: dict[str, Tensor] = {}
    for name, tensor in original["model"].items():
        if ".lora_" in name:
            layer, _, rest = name.removeprefix("llama_model.base_model.model.").partition(".lora_")
            name = "llama_model." + spelling.format(layer, rest[0])
        tensors[name] = tensor
    assert tensors.keys() != original["model"].keys()
    converted(files, saved({**original, "model": tensors}, tmp_path), tmp_path / "other")
    converted(files, saved(original, tmp_path), tmp_path / "usual")
    other, usual = (load_file(tmp_path / name / "trained.safetensors") for name in ("other", "usual"))
    assert other.keys() == usual.keys()
    assert all(torch.equal(other[name], usual[name]) for name in usual)
    assert sum(".lora_" in name for name in usual) == 8


def test_a_complete_folder_needs_no_other(
    files: Files, tmp_path: Path, speech_like: Callable[[float, int], np.ndarray]
) -> None:
    path = saved(checkpoint(), tmp_path)
    converted(files, path, tmp_path / "trained")
    converted(files, path, tmp_path / "complete", complete=True)
    assert not (tmp_path / "trained" / "model.safetensors").exists()
    (model, processor), (whole, _) = (load_model(tmp_path / name) for name in ("trained", "complete"))
    inputs = processor.prepare([speech_like(1.0, 0)], [ASK])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, whole(**inputs).logits)


def test_where_files_are_named_from_here_the_folder_is_read_from_elsewhere(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(checkpoint(sound=False), tmp_path)
    monkeypatch.chdir(files.llm.parent)
    convert_salmonn(path, tmp_path / "model", speech_encoder="encoder", llm="./llm")
    monkeypatch.chdir(tmp_path)
    load_model(tmp_path / "model")


def test_answers_end_where_training_ended_them(
    files: Files, tmp_path: Path, speech_like: Callable[[float, int], np.ndarray]
) -> None:
    """`</s>` is no token of this LLM: it spells it, as Llama 3 does, and an answer stops there."""
    converted(files, saved(checkpoint(), tmp_path), tmp_path / "model")
    lm = AudioLM(*load_model(tmp_path / "model"))
    script = iter(lm.processor.tokenizer("a dog barks.</s> and more")["input_ids"])

    def say(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        logits = torch.full_like(output, -100.0)
        logits[..., next(script)] = 100.0
        return logits

    lm.model.get_output_embeddings().register_forward_hook(say)  # type: ignore[union-attr]  # an LLM has a head
    (answer,) = lm.answer([speech_like(1.0, 0)], [ASK])
    assert (answer.text, answer.num_tokens, answer.truncated) == ("a dog barks.", len("a dog barks.</s>"), False)


def test_an_end_of_one_token_is_an_end_symbol(files: Files, tmp_path: Path) -> None:
    original = checkpoint()
    settings = {**CONFIG["model"], "end_sym": "<|reserved_special_token_2|>", "prompt_template": "Q: {} A:"}
    converted(files, saved({**original, "config": {"model": settings}}, tmp_path), tmp_path / "model")
    model, processor = load_model(tmp_path / "model")
    end = processor.tokenizer.convert_tokens_to_ids("<|reserved_special_token_2|>")
    assert end in model.generation_config.eos_token_id
    assert model.generation_config.stop_strings is None
    assert processor.prompt_template == "<|im_start|>Q: <Speech>{audio}</Speech> {instruction} A:"


def test_the_scale_of_adapters_is_not_guessed(files: Files, tmp_path: Path) -> None:
    path = saved({"model": checkpoint()["model"]}, tmp_path)
    with pytest.raises(WeightsError, match=r"does not say their `lora_alpha`; published is --lora-alpha 32$"):
        converted(files, path, tmp_path / "model")
    converted(files, path, tmp_path / "model", lora_alpha=32)
    lora = load_model(tmp_path / "model")[0].config.lora
    assert lora is not None
    assert (lora["r"], lora["lora_alpha"], lora["target_modules"]) == (4, 32, ["q_proj", "v_proj"])


Q0 = "speech_Qformer.bert.encoder.layer.0.attention.self.query.weight"
A0 = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"


def without(*names: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: [content["model"].pop(name) for name in names]


def with_(**tensors: Tensor) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["model"].update({name.replace("__", "."): t for name, t in tensors.items()})


def said(**settings: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.update(config={"model": {**CONFIG["model"], **settings}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(Q0), f"{Q0}` is missing"),
        (
            without("speech_query_tokens", "ln_audio.bias"),
            "`ln_audio.bias` is missing; `speech_query_tokens` is missing",
        ),
        (without(A0), f"`{A0}` is missing"),
        (with_(beats__fc=torch.zeros(2)), "nothing else: `beats.fc` is unexpected"),
        (with_(ln_speech__weight=torch.zeros(33)), r"`ln_speech.weight` has shape \[33\], not \[32\]"),
        (with_(ln_speech__weight=torch.zeros(32).int()), "`ln_speech.weight` is no tensor of real numbers"),
        (
            with_(speech_llama_proj__weight=torch.zeros(80, HIDDEN), speech_llama_proj__bias=torch.zeros(80)),
            r"`speech_llama_proj.bias` has shape \[80\], not \[64\]; `speech_llama_proj.weight` has shape \[80, 48\], "
            r"not \[64, 48\]",
        ),
        (
            with_(speech_llama_proj__weight=torch.zeros(LLM, 50)),
            "its tensors make no Q-Former of 12 heads: hidden_size 50 does not divide by 12",
        ),
        (
            with_(llama_model__base_model__model__lm_head__weight=torch.ones(263, LLM)),
            "`llama_model.base_model.model.lm_head.weight` is not that of .*llm; name the LLM that it was trained with",
        ),
        (with_(llama_model__model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(4, 64)), f"`{A0}` twice"),
        (
            said(second_stride=0.2),
            "second_stride is 0.2, second_per_window 0.333333; stapes builds windows that do not",
        ),
        (said(window_level_Qformer=False), "config.model.window_level_Qformer is False; stapes builds"),
        (said(prompt_template="no field"), "prompt_template is 'no field'; wanted a text with {} once"),
        (lambda content: content.pop("model"), "is not a checkpoint of the SALMONN family, which has `model` with"),
        (
            lambda content: content.update(model=drawn(beats_shapes(), 1)),
            "is not a checkpoint of the SALMONN family.*; of a BEATs or an EAT `stapes convert beats` or",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    files: Files, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = checkpoint()
    change(content)
    path = saved(content, tmp_path)
    with pytest.raises(WeightsError, match=f"^{path}: .*{message}"):
        converted(files, path, tmp_path / "model")
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_the_sound_encoder_has_to_be_named_if_there_is_one(files: Files, tmp_path: Path) -> None:
    path = saved(checkpoint(), tmp_path)
    with pytest.raises(WeightsError, match=r"was trained with a sound encoder \(`ln_audio`\); name it with --sound-"):
        converted(files, path, tmp_path / "model", sound_encoder=None)
    path = saved(checkpoint(sound=False), tmp_path)
    with pytest.raises(WeightsError, match=r"was trained without a sound encoder \(no `ln_audio`\); leave --sound-"):
        converted(files, path, tmp_path / "model")


def test_a_file_that_is_cut_short_or_holds_code(files: Files, tmp_path: Path) -> None:
    path = saved(checkpoint(), tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"checkpoint.pth: torch cannot read it, it may be cut short: "):
        converted(files, path, tmp_path / "model")
    path = saved({**checkpoint(), "config": Path("anything")}, tmp_path)
    with pytest.raises(
        WeightsError, match=r"checkpoint.pth: holds more than tensors and plain values, and stapes runs"
    ):
        converted(files, path, tmp_path / "model")
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_folder_that_is_there_stays_as_it_is(files: Files, tmp_path: Path) -> None:
    path = saved(checkpoint(), tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(WeightsError, match="model: is there already; name another --out, or take it away first"):
        converted(files, path, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []
