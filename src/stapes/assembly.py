"""From names to a model, and model folders in and out.

A *complete* folder is what `save_pretrained` writes: `from_pretrained` reads it anywhere. A *trained-part* folder holds
`trained.safetensors` with the tensors that training changed; the rest comes by name through `weights.resolve`.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, WhisperConfig

from . import weights
from .errors import ModelFolderError
from .files import read_json, write_json
from .model import (
    ConnectorConfig,
    StapesConfig,
    StapesFeatureExtractor,
    StapesForConditionalGeneration,
    StapesProcessor,
    find_reserved_tokens,
)
from .model.connectors import CTCCompressor, StackedMLP
from .model.ctc_vocabulary import CTCVocabulary
from .model.speech_encoder import SpeechEncoder

TRAINED_FILE = "trained.safetensors"
_COMPLETE_FILES = ("model.safetensors", "model.safetensors.index.json")
_PLAIN_PROMPT = "USER: <Speech>{audio}</Speech> {instruction}\nASSISTANT:"


def build(
    speech_encoder: str,
    llm: str,
    connector: ConnectorConfig,
    *,
    prompt: str = "chat",
    audio_token: str | None = None,
    pad_audio_to_s: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[StapesForConditionalGeneration, StapesProcessor]:
    """Join a Whisper encoder and a causal LM with a fresh connector.

    Args:
        speech_encoder, llm: Hub ids or folders, see `weights.resolve`.
        connector: its shape; the weights are drawn with `seed`.
        prompt: `chat` (the LLM's chat template), `plain` (SALMONN's USER/ASSISTANT), or a text with `{audio}` and
            `{instruction}` that ends where the answer begins.
        audio_token: a token of the LLM's vocabulary that text never uses; found by itself for families we know.
        pad_audio_to_s: pad every clip with silence to this length, as Whisper does with 30.
        dtype: of all weights.

    Raises:
        WeightsError: if weights cannot be found.
        ModelFolderError: if the speech encoder is not a Whisper.
        ValueError: if the tokenizer has no token to spare, or no merges for a `ctc_compressor`.
    """
    encoder, feature_extractor = _load_speech_encoder(speech_encoder, pad_audio_to_s, dtype)
    tokenizer = AutoTokenizer.from_pretrained(weights.resolve(llm))
    language_model = _load_language_model(llm, dtype)
    spare = find_reserved_tokens(tokenizer, count=2 if audio_token is None else 1)
    audio_token = audio_token or spare.pop(0)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.pad_token = spare[0]
    vocabulary = None
    if connector.kind == "ctc_compressor":
        vocabulary = CTCVocabulary(tokenizer, connector.ctc_merges)
        connector.num_ctc_tokens = len(vocabulary)
    config = StapesConfig(
        # Copies: a composite configuration clears the attention implementation of those it is given, and parts
        # without one fall back to attention that ignores masks.
        speech_config=copy.deepcopy(encoder.config),
        text_config=copy.deepcopy(language_model.config),
        connector_config=connector,
        audio_token_id=tokenizer.convert_tokens_to_ids(audio_token),
        sources={"speech_encoder": speech_encoder, "llm": llm},
    )
    torch.manual_seed(seed)
    model = StapesForConditionalGeneration(config, speech_encoder=encoder, language_model=language_model)
    _begin_connector(model, vocabulary)
    model.connector.to(dtype)
    model.generation_config = _generation_config(language_model, tokenizer, config.audio_token_id)
    processor = StapesProcessor(
        feature_extractor,
        tokenizer,
        audio_token=audio_token,
        prompt_template=_prompt_template(prompt, tokenizer),
        frames_per_window=connector.frames_per_window,
        queries_per_window=connector.queries_per_window,
        tail=connector.tail,
    )
    return model.eval(), processor


def load_model(
    folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[StapesForConditionalGeneration, StapesProcessor]:
    """Load a model folder, complete or trained-part-only, in eval mode.

    Raises:
        ModelFolderError: if the folder lacks a file, a file is damaged, or its tensors do not fit its configuration.
        WeightsError: if a trained-part folder names weights that cannot be found.
    """
    folder = Path(folder)
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        _require(folder, name)
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type != StapesConfig.model_type:
        raise ModelFolderError(f"{folder}: config.json describes a `{model_type}` model, not a stapes one")
    processor = StapesProcessor.from_pretrained(folder)
    if (folder / TRAINED_FILE).exists():
        model = _load_trained_part(folder, dtype)
    elif any((folder / name).exists() for name in _COMPLETE_FILES):
        model = _load_complete(folder, dtype)
    else:
        raise ModelFolderError(
            f"{folder}: holds neither {_COMPLETE_FILES[0]} nor {TRAINED_FILE}; the copy or download is incomplete"
        )
    cast(nn.Module, model).to(device)
    return model.eval(), processor


def save_model(
    model: StapesForConditionalGeneration, processor: StapesProcessor, folder: Path, *, trained_only: bool = False
) -> None:
    """Write a model folder, complete or with the trained parts only (`config.trained_parts`)."""
    folder.mkdir(parents=True, exist_ok=True)
    if not trained_only:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return
    parts = {"connector", *(model.config.trained_parts or ())}
    tensors = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if part_of(name) in parts
    }
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    base = {name: weights.describe(weights.resolve(source)) for name, source in (model.config.sources or {}).items()}
    write_json(folder / "base_weights.json", base)
    save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})


def part_of(tensor_name: str) -> Literal["speech_encoder", "connector", "language_model", "lora"]:
    """Tell which part of the model a tensor belongs to."""
    if ".lora_" in tensor_name:
        return "lora"
    part = tensor_name.partition(".")[0]
    assert part in ("speech_encoder", "connector", "language_model")
    return part


def file_bytes(folder: Path) -> int:
    """Sum the sizes of all files of a model folder, base weights of a trained-part folder included.

    Of a Whisper checkpoint the decoder is counted too, because the file that has to be there holds it.
    """
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if (folder / TRAINED_FILE).exists():
        for source in (read_json(folder / "config.json").get("sources") or {}).values():
            total += sum(path.stat().st_size for path in weights.resolve(source).glob("*.safetensors"))
    return total


def copy_processor(source: Path, target: Path) -> None:
    """Copy everything a model folder holds beside weights and configuration."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copy2(path, target / path.name)


def _load_speech_encoder(
    name: str, pad_audio_to_s: float | None, dtype: torch.dtype
) -> tuple[SpeechEncoder, StapesFeatureExtractor]:
    folder = weights.resolve(name)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise ModelFolderError(f"{name}: is a `{config.get('model_type')}` model; a speech encoder must be a Whisper")
    encoder = SpeechEncoder.from_pretrained(
        folder,
        config=WhisperConfig.from_pretrained(folder),
        dtype=dtype,
        key_mapping={r"^model\.encoder\.": "", r"^encoder\.": ""},
    )
    return encoder, StapesFeatureExtractor.from_pretrained(folder, pad_to_s=pad_audio_to_s)


def _load_language_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(weights.resolve(name), dtype=dtype)


@torch.no_grad()
def _begin_connector(model: StapesForConditionalGeneration, vocabulary: CTCVocabulary | None) -> None:
    """Let audio tokens enter the LLM at the size of its own embeddings (root mean square over the table)."""
    embeddings = cast(nn.Embedding, model.get_input_embeddings()).weight.float()
    size = float(embeddings.pow(2).mean().sqrt())
    match model.connector:
        case StackedMLP() as connector:
            nn.init.constant_(connector.norm_out.weight, size)
        case CTCCompressor() as connector:
            assert vocabulary is not None
            connector.token_embeddings.weight.copy_(embeddings[vocabulary.token_ids])
            nn.init.zeros_(connector.detail.weight)
            nn.init.constant_(connector.norm_sound.weight, size)


def _generation_config(language_model: PreTrainedModel, tokenizer: Any, audio_token_id: int) -> GenerationConfig:
    """Greedy unless asked otherwise: an LLM's own sampling defaults do not suit transcription."""
    own = cast(GenerationConfig, language_model.generation_config)
    # A chat LLM ends its turn with the tokenizer's end symbol, which its generation settings do not always list.
    eos = {tokenizer.eos_token_id, *(own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id])}
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(eos - {None}),
        pad_token_id=tokenizer.pad_token_id,
        # It stands for audio in a prompt; in an answer it would be taken for a place that wants audio.
        suppress_tokens=[audio_token_id],
    )


def _prompt_template(prompt: str, tokenizer: Any) -> str:
    match prompt:
        case "plain":
            return (tokenizer.bos_token or "") + _PLAIN_PROMPT
        case "chat":
            if tokenizer.chat_template is None:
                raise ValueError("the LLM's tokenizer has no chat template; use `prompt: plain` or a text of your own")
            messages = [{"role": "user", "content": "{audio}\n{instruction}"}]
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        case _:
            return prompt


def _load_complete(folder: Path, dtype: torch.dtype) -> StapesForConditionalGeneration:
    try:
        loaded: Any = StapesForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(
            f"{folder}: weights cannot be read: {error}; copy or download the folder again"
        ) from error
    model, info = loaded
    _refuse(
        folder, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), sorted(map(str, info["mismatched_keys"]))
    )
    return model


def _load_trained_part(folder: Path, dtype: torch.dtype) -> StapesForConditionalGeneration:
    config = StapesConfig.from_pretrained(folder)
    if not config.sources:
        raise ModelFolderError(
            f"{folder}: config.json names no `sources` for the weights that {TRAINED_FILE} leaves out"
        )
    encoder, _ = _load_speech_encoder(config.sources["speech_encoder"], None, dtype)
    language_model = _load_language_model(config.sources["llm"], dtype)
    model = StapesForConditionalGeneration(config, speech_encoder=encoder, language_model=language_model)
    cast(nn.Module, model).to(dtype)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    try:
        tensors = load_file(folder / TRAINED_FILE)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{folder / TRAINED_FILE}: cannot be read: {error}; copy the folder again") from error
    parts = {"connector", *(config.trained_parts or ())}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if part_of(name) in parts}
    mismatched = [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    _refuse(folder, sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys()), sorted(mismatched))
    model.load_state_dict(tensors, strict=False)
    return model


def _require(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such model folder")
    if not (folder / name).exists():
        raise ModelFolderError(f"{folder}: {name} is missing; the copy or download is incomplete")


def _refuse(folder: Path, missing: list[str], unexpected: list[str], mismatched: list[str]) -> None:
    """Raise if any tensor is missing, left over or of another shape: such a model would answer nonsense."""
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            problems.append(f"{len(names)} {what}: {shown}")
    if problems:
        raise ModelFolderError(f"{folder}: weights do not fit config.json: {'; '.join(problems)}")
