"""Checkpoints of SALMONN, NOTA's baseline and what was derived from them → the audio language model they trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..assembly import build
from ..errors import WeightsError
from ..model import ConnectorConfig, StapesForConditionalGeneration, StapesProcessor
from .checkpoints import fill, read_checkpoint

_PAD_AUDIO_TO_S = 30.0  # Whisper hears every clip padded to this length
_PAD_SOUND_TO_S = 1.0  # BEATs hears a shorter clip padded to this length, a longer one as it is
_NUM_HEADS = 12  # of BERT-base, from whose configuration every Q-Former of the family is made
_PUBLISHED = {"second_per_window": 0.333333, "lora_dropout": 0.1, "prompt_template": "USER: {}\nASSISTANT:"}
_OWN_PARTS = ("speech_query_tokens", "speech_Qformer.", "ln_speech.", "ln_audio.", "speech_llama_proj.")
_HEAD = re.compile(r"llama_model\..*lm_head\.weight")
_LORA = re.compile(r"llama_model\.(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# Patterns of names → why the model has no place for them.
_IGNORED = {
    r"llama_model\..*\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+|SCB|weight_format)": (
        "state of the quantised LLM, whose weights are not in the file and come with `--llm`"
    ),
    r"llama_model\..*rotary_emb\.inv_freq": "fixed frequencies, which are computed",
    r"beats\.encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight": (
        "the table of BEATs' layer 0 once more, which comes with `--sound-encoder`"
    ),
    r"speech_Qformer\.bert\.embeddings\.position_ids": "the numbers 0, 1, 2, …, which nothing reads",
}
# Our names → theirs; the first that fits.
_PLACES = (
    (r"connector\.query_tokens", "speech_query_tokens"),
    (r"connector\.norm\.(.+)", r"ln_speech.\1"),
    (r"connector\.sound_norm\.(.+)", r"ln_audio.\1"),
    (r"connector\.projection\.(.+)", r"speech_llama_proj.\1"),
    (r"connector\.qformer\.layernorm\.(.+)", r"speech_Qformer.bert.embeddings.LayerNorm.\1"),
    (
        r"connector\.qformer\.encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\.(.+)",
        r"speech_Qformer.bert.encoder.layer.\1.\2.self.\3",
    ),
    (r"connector\.qformer\.(.+)", r"speech_Qformer.bert.\1"),
    (r"language_model\.(.+\.lora_[AB]\.default\.weight)", r"llama_model.base_model.model.\1"),
)


class LoadedSalmonn(NamedTuple):
    """A model with a checkpoint's weights, its processor, and what it does not hold of the checkpoint: key → why."""

    model: StapesForConditionalGeneration
    processor: StapesProcessor
    ignored: dict[str, str]


def load_salmonn(
    path: Path, speech_encoder: str, llm: str, sound_encoder: str | None = None, lora_alpha: int | None = None
) -> LoadedSalmonn:
    """Load a checkpoint as bytedance/SALMONN or nota-github/audiolm-trainer write them.

    Such a file holds what was trained: Q-Former, norms, projection, LoRA adapters. The rest comes by name. What the
    model hears and reads is what the original gave it: 30 s of audio for Whisper, at least 1 s for BEATs, the frames of
    both side by side in windows of 0.33 s without the last that is not full, and the prompt `USER: …`, `ASSISTANT:`.

    Args:
        path: the `.pth` file.
        speech_encoder, llm, sound_encoder: see `assembly.build`; those that the checkpoint was trained with.
        lora_alpha: the adapters' scale times their rank; read from the checkpoint where it says it.

    Returns:
        the model, float32, in eval mode, its processor, and what was left out.

    Raises:
        WeightsError: if the file cannot be read, is of another family or another LLM, contradicts `sound_encoder`, or
            any tensor is missing, unexpected or of another shape.

    Source: SALMONN (arXiv 2310.13289) and its code. Where we differ: it loads with `strict=False`, so that a tensor
    that finds no place is lost without a word; it cuts clips after 30 s, here they go on in windows.
    """
    checkpoint = read_checkpoint(path)
    tensors = _tensors(checkpoint, path)
    settings = _settings(checkpoint, path)
    _check_sound(tensors, sound_encoder, path)
    ignored = {name: reason for pattern, reason in _IGNORED.items() for name in tensors if re.fullmatch(pattern, name)}
    ignored |= dict.fromkeys(checkpoint.keys() - {"model", "config"}, "serves training on, not what the model computes")
    lora = _lora_settings(tensors, settings, lora_alpha, path)
    model, processor = build(
        speech_encoder,
        llm,
        _connector(tensors, settings, path),
        sound_encoder=sound_encoder,
        prompt="plain",
        pad_audio_to_s=_PAD_AUDIO_TO_S,
    )
    if lora is not None:
        try:
            model.add_lora(**lora)
        except ValueError as error:
            raise WeightsError(f"{path}: its adapters do not fit {llm}: {error}") from error
    ignored |= _drop_tied_head(tensors, model, path, llm)
    fill(model, {name: tensors[name] for name in tensors.keys() - ignored.keys()}, path, theirs_of_salmonn)
    model.config.trained_parts = ["connector", *(["lora"] if lora else [])]
    _set_front_end(processor, settings, path)
    _set_end(model, processor, str(settings.get("end_sym", "")))
    return LoadedSalmonn(model.eval(), processor, ignored)


def theirs_of_salmonn(name: str) -> str | None:
    """Translate a weight's name in our model to that in SALMONN's code; None for those that come with other files."""
    for ours, theirs in _PLACES:
        if found := re.fullmatch(ours, name):
            return found.expand(theirs)
    return None


def _tensors(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Find the tensors, adapters under one spelling of their names."""
    tensors = checkpoint.get("model")
    if not isinstance(tensors, dict) or not any(str(name).startswith(_OWN_PARTS) for name in tensors):
        hint = "; of a BEATs or an EAT `stapes convert beats` or `convert eat` makes a folder" if tensors else ""
        raise WeightsError(
            f"{path}: is not a checkpoint of the SALMONN family, which has `model` with `speech_Qformer.…` and "
            f"`speech_llama_proj.…`{hint}"
        )
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        adapter = _LORA.fullmatch(name)
        plain = adapter.expand(r"llama_model.base_model.model.\1.lora_\2.default.weight") if adapter else name
        if plain in found:
            raise WeightsError(f"{path}: holds `{plain}` twice, as `{name}` too")
        found[plain] = tensor
    return found


def _settings(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Read what the checkpoint says of its model, and refuse what stapes cannot build."""
    config = checkpoint.get("config")
    found = config.get("model") if isinstance(config, dict) else None
    settings: dict[str, Any] = {**_PUBLISHED, **(found if isinstance(found, dict) else {})}
    for name in ("use_speech_Qformer", "window_level_Qformer"):
        if settings.get(name, True) is not True:
            raise WeightsError(
                f"{path}: config.model.{name} is {settings[name]!r}; stapes builds a SALMONN with True only"
            )
    window = settings["second_per_window"]
    if settings.get("second_stride", window) != window:
        raise WeightsError(
            f"{path}: config.model.second_stride is {settings['second_stride']!r}, second_per_window {window!r}; "
            "stapes builds windows that do not overlap"
        )
    return settings


def _check_sound(tensors: Mapping[str, Any], sound_encoder: str | None, path: Path) -> None:
    hears_sound = any(name.startswith("ln_audio.") for name in tensors)
    if hears_sound and sound_encoder is None:
        raise WeightsError(f"{path}: was trained with a sound encoder (`ln_audio`); name it with --sound-encoder")
    if not hears_sound and sound_encoder is not None:
        raise WeightsError(f"{path}: was trained without a sound encoder (no `ln_audio`); leave --sound-encoder out")


def _connector(tensors: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> ConnectorConfig:
    """Read the Q-Former's sizes off the shapes; where a tensor is missing `fill` will say so, whatever stands here."""
    layers = [int(found[1]) for name in tensors if (found := re.match(r"speech_Qformer\..*\.layer\.(\d+)\.", name))]
    hidden_size = _size(tensors, "speech_llama_proj.weight", 1, 768)
    try:
        return ConnectorConfig(
            kind="windowed_qformer",
            frames_per_window=round(1500 * float(settings["second_per_window"]) / 30),
            queries_per_window=_size(tensors, "speech_query_tokens", 1, 1),
            tail="drop",
            hidden_size=hidden_size,
            num_hidden_layers=max(layers, default=1) + 1,
            num_attention_heads=_NUM_HEADS,
            intermediate_size=_size(
                tensors, "speech_Qformer.bert.encoder.layer.0.intermediate_query.dense.weight", 0, 4 * hidden_size
            ),
        )
    except (StrictDataclassError, ValueError) as error:
        reason = error.__cause__ or error  # without the name of the validator, where there was one
        raise WeightsError(f"{path}: its tensors make no Q-Former of {_NUM_HEADS} heads: {reason}") from error


def _size(tensors: Mapping[str, Any], name: str, dimension: int, otherwise: int) -> int:
    tensor = tensors.get(name)
    return tensor.shape[dimension] if isinstance(tensor, Tensor) and tensor.dim() > dimension else otherwise


def _lora_settings(
    tensors: Mapping[str, Any], settings: Mapping[str, Any], lora_alpha: int | None, path: Path
) -> dict[str, Any] | None:
    """Describe the adapters for peft: rank and layers by the tensors, the scale by what is said of it."""
    downs = {name: tensor for name, tensor in tensors.items() if (found := _LORA.fullmatch(name)) and found[2] == "A"}
    if not downs:
        return None
    alpha = settings.get("lora_alpha") if lora_alpha is None else lora_alpha
    if alpha is None:
        raise WeightsError(f"{path}: has adapters but does not say their `lora_alpha`; published is --lora-alpha 32")
    return {
        "r": min(_size(downs, name, 0, 1) for name in downs),
        "lora_alpha": alpha,
        "lora_dropout": settings["lora_dropout"],
        "target_modules": sorted({found[1].rpartition(".")[2] for name in downs if (found := _LORA.fullmatch(name))}),
    }


def _drop_tied_head(
    tensors: dict[str, Any], model: StapesForConditionalGeneration, path: Path, llm: str
) -> dict[str, str]:
    """Leave out a head that is the table of embeddings, after seeing that it is this LLM's."""
    heads = [name for name in tensors if _HEAD.fullmatch(name)]
    if not heads or not model.language_model.config.tie_word_embeddings:
        return {}
    (name,) = heads
    table = model.get_input_embeddings().get_parameter("weight")
    head = tensors[name]
    rows = min(len(table), len(head)) if isinstance(head, Tensor) and head.dim() == 2 else 0
    # The original adds rows for padding and stores float16; a pre-quantised LLM may have mended a few rows.
    same = rows > 0 and head.shape[1] == table.shape[1]
    if not same or not _mostly_close(head[:rows], table[:rows]):
        raise WeightsError(f"{path}: its `{name}` is not that of {llm}; name the LLM that it was trained with")
    return {name: "the LLM's table of embeddings once more, which comes with `--llm`"}


def _mostly_close(found: Tensor, expected: Tensor) -> bool:
    close = torch.isclose(found.float(), expected.float(), rtol=1e-2, atol=1e-4).all(dim=1)
    return bool(close.float().mean() > 0.99)


def _set_front_end(processor: StapesProcessor, settings: Mapping[str, Any], path: Path) -> None:
    """Give the processor the original's prompt, and BEATs its second of audio."""
    template = settings["prompt_template"]
    if not isinstance(template, str) or template.count("{}") != 1:
        raise WeightsError(f"{path}: config.model.prompt_template is {template!r}; wanted a text with {{}} once")
    asked = template.replace("{}", "<Speech>{audio}</Speech> {instruction}")
    processor.prompt_template = (processor.tokenizer.bos_token or "") + asked
    sound = processor.feature_extractor.sound
    if sound is not None and "pad_to_s" in sound:
        sound["pad_to_s"] = _PAD_SOUND_TO_S


def _set_end(model: StapesForConditionalGeneration, processor: StapesProcessor, end: str) -> None:
    """Let answers end where training ended them: at a token, or at a text such as `</s>` that the LLM has to spell."""
    if not end:
        return
    settings: Any = model.generation_config
    tokens = processor.tokenizer(end, add_special_tokens=False)["input_ids"]
    if len(tokens) == 1:
        settings.eos_token_id = sorted({*settings.eos_token_id, tokens[0]})
    else:
        settings.stop_strings = [end]
