"""From names to a model, and model folders in and out.

A *complete* folder is what `save_pretrained` writes: `from_pretrained` reads it anywhere. A *trained-part* folder holds
`trained.safetensors` with the tensors that training changed; the rest comes by name through `weights.resolve`.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from . import weights
from .errors import ModelFolderError
from .files import read_json, write_json
from .model import (
    ConnectorConfig,
    StapesConfig,
    StapesFeatureExtractor,
    StapesForConditionalGeneration,
    StapesProcessor,
    lora,
    nf4,
)
from .model.connectors import CTCCompressor, StackedMLP
from .model.ctc_vocabulary import CTCVocabulary
from .model.families import Family, end_token_ids, prompt_template, reserve_tokens
from .model.speech_encoder import is_last_speech_layer
from .model.speller import letter_groups
from .parts import (
    check_stored,
    load_encoders,
    load_language_model,
    load_strictly,
    load_tokenizer,
    read_object,
    reading,
    refuse,
)

TRAINED_FILE = "trained.safetensors"
BASE_FILE = "base_weights.json"
_COMPLETE_FILES = ("model.safetensors", "model.safetensors.index.json")
_CTC_ROWS = "connector.token_embeddings.weight"
_SPELLING = "connector.speller.spelling"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json")


def build(
    speech_encoder: str,
    llm: str,
    connector: ConnectorConfig,
    *,
    sound_encoder: str | None = None,
    prompt: str = "chat",
    audio_token: str | None = None,
    pad_audio_to_s: float | None = None,
    seed: int = 0,
) -> tuple[StapesForConditionalGeneration, StapesProcessor]:
    """Join a Whisper encoder, maybe a sound encoder, and a causal LM with a fresh connector; all in float32.

    Args:
        speech_encoder, llm: Hub ids or folders, see `weights.resolve`.
        connector: its shape; the weights are drawn with `seed`.
        sound_encoder: a folder of a BEATs or an EAT, as `stapes convert` writes them, or an audio model of transformers
            (`model.sound_tower`).
        prompt: `chat` (the LLM's chat template), `plain` (SALMONN's USER/ASSISTANT), or a text with `{audio}` and
            `{instruction}` that ends where the answer begins.
        audio_token: a token of the LLM's vocabulary that text never uses; found by itself for families we know.
        pad_audio_to_s: pad every clip with silence to this length, as Whisper does with 30. A sound encoder still
            hears the clip alone; its frames are padded with zeros, as SALMONN does.

    Raises:
        WeightsError: if weights cannot be found.
        ModelFolderError: if the speech encoder is not a Whisper, the sound encoder of no kind we know, the LLM not a
            decoder, its tokenizer has no token to spare or no chat template, or weights are missing or damaged.
    """
    sources = {"speech_encoder": speech_encoder, "llm": llm}
    if sound_encoder is not None:
        sources["sound_encoder"] = sound_encoder
    speech, sound, feature_extractor = load_encoders(sources, pad_audio_to_s, torch.float32)
    if (connector.sound_layer or 0) > (num_layers := speech.config.encoder_layers):
        raise ModelFolderError(f"{speech_encoder}: has {num_layers} layers; sound_layer is {connector.sound_layer}")
    tokenizer, family, num_embeddings = load_tokenizer(llm)
    try:
        # The template first: it may name another end symbol, which is then in use.
        template = prompt_template(prompt, tokenizer, family)
        audio_token = reserve_tokens(tokenizer, family, audio_token, num_embeddings)
        processor = _build_processor(feature_extractor, tokenizer, audio_token, template, connector)
    except ValueError as error:
        raise ModelFolderError(f"{llm}: {error}") from error
    language_model = load_language_model(llm, torch.float32)
    vocabulary = _ctc_vocabulary(llm, tokenizer, connector)
    config = StapesConfig(
        speech_config=_copy_named(speech.config, speech_encoder),
        text_config=_copy_named(language_model.config, llm),
        connector_config=connector,
        sound_config=_copy_named(sound.config, cast(str, sound_encoder)) if sound else None,
        audio_token_id=processor.audio_token_id,
        sources=sources,
    )
    torch.manual_seed(seed)
    model = StapesForConditionalGeneration(config, speech, language_model, sound)
    begin_connector(model, vocabulary)
    nf4.settle(model, torch.float32)
    model.generation_config = _generation_config(language_model, tokenizer, family, config.audio_token_id)
    return model.eval(), processor


def load_model(
    folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32, *, fold_lora: bool = False
) -> tuple[StapesForConditionalGeneration, StapesProcessor]:
    """Load a model folder, complete or trained-part-only, in eval mode.

    Args:
        folder: the folder.
        device, dtype: torch's.
        fold_lora: add adapters to the LLM's weights where that takes no peft (`model.lora`): those of a trained-part
            folder that sit in plain linear layers. The answers stay the same but for rounding.

    Raises:
        ModelFolderError: if the folder lacks a file, a file is damaged, or its tensors do not fit its configuration.
        WeightsError: if a trained-part folder names weights that cannot be found.
    """
    folder = Path(folder)
    config = read_object(folder / "config.json")
    if config.get("model_type") != StapesConfig.model_type:
        raise ModelFolderError(
            f"{folder}: config.json describes a `{config.get('model_type')}` model, not a stapes one"
        )
    for name in ("generation_config.json", "processor_config.json", "tokenizer_config.json"):
        read_object(folder / name)
    check_stored(folder, config)
    if (config.get("text_config") or {}).get("auto_map") and config.get("sources"):
        weights.admit_code(config["sources"]["llm"])
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise ModelFolderError(f"{folder}: {_TOKENIZER_FILES[0]} is missing; the copy or download is incomplete")
    with reading(folder):
        processor = StapesProcessor.from_pretrained(folder)
    if (folder / TRAINED_FILE).exists():
        model = _load_trained_part(folder, processor.tokenizer, dtype, fold_lora)
    elif any((folder / name).exists() for name in _COMPLETE_FILES):
        model = load_strictly(StapesForConditionalGeneration, folder, folder, whole=True, dtype=dtype)
    else:
        raise ModelFolderError(
            f"{folder}: holds neither {_COMPLETE_FILES[0]} nor {TRAINED_FILE}; the copy or download is incomplete"
        )
    nf4.settle(model, dtype)
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
    tensors = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if _is_trained(name, cast(StapesConfig, model.config))
    }
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    base = {name: weights.describe(weights.resolve(source)) for name, source in (model.config.sources or {}).items()}
    write_json(folder / BASE_FILE, base)
    save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})


def part_of(tensor_name: str) -> Literal["speech_encoder", "sound_encoder", "connector", "language_model", "lora"]:
    """Tell which part of the model a tensor belongs to."""
    if ".lora_" in tensor_name:
        return "lora"
    part = tensor_name.partition(".")[0]
    assert part in ("speech_encoder", "sound_encoder", "connector", "language_model")
    return part


def _is_trained(tensor_name: str, config: StapesConfig) -> bool:
    """Tell whether a tensor has to be in a trained-part folder: it is not what the named weights hold."""
    part = part_of(tensor_name)
    if tensor_name == _SPELLING:
        return False  # the vocabulary's
    if tensor_name == _CTC_ROWS:
        return "language_model" in (config.trained_parts or ())  # else they are the named LLM's own rows
    if part == "speech_encoder" and config.trained_speech_layers is not None:
        num_layers = config.speech_config.encoder_layers
        if not is_last_speech_layer(tensor_name, num_layers, config.trained_speech_layers):
            return False
    return part in {"connector", *(config.trained_parts or ())}


def file_bytes(folder: Path) -> int:
    """Sum the sizes of all files of a model folder, base weights of a trained-part folder included.

    Of a Whisper checkpoint the decoder is counted too, because the file that has to be there holds it.
    """
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if (folder / TRAINED_FILE).exists():
        sources = read_json(folder / "config.json").get("sources") or {}
        for base in _find_base(folder, sources).values():
            total += sum(path.stat().st_size for path in base.glob("*.safetensors"))
    return total


@torch.no_grad()
def _embedding_size(model: StapesForConditionalGeneration) -> float:
    """Return the root mean square of what tokens enter the LLM as; some families scale their table (Gemma)."""
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    ids = torch.arange(embeddings.weight.shape[0], device=embeddings.weight.device)
    squares = [float(embeddings(part).float().pow(2).mean(dim=-1).sum()) for part in ids.split(8192)]
    return math.sqrt(sum(squares) / len(ids))


def _copy_named(config: Any, name: str) -> Any:
    """Copy a part's configuration and let it name the part, not where its weights lie on this machine.

    A composite configuration clears the attention implementation of those it is given, and parts without one fall back
    to attention that ignores masks: hence copies.
    """
    config = copy.deepcopy(config)
    config._name_or_path = name
    return config


def _ctc_vocabulary(llm: str, tokenizer: Any, connector: ConnectorConfig) -> CTCVocabulary | None:
    """List what a `ctc_compressor` hears, and note in its configuration how much that is."""
    if connector.kind != "ctc_compressor":
        return None
    try:
        vocabulary = CTCVocabulary.of(tokenizer, connector.ctc_merges)
    except ValueError as error:
        raise ModelFolderError(f"{llm}: {error}") from error
    connector.num_ctc_tokens = len(vocabulary)
    if connector.ctc_spelling:
        connector.num_letter_groups = len(letter_groups(vocabulary.pieces)[0])
    return vocabulary


@torch.no_grad()
def begin_connector(model: StapesForConditionalGeneration, vocabulary: CTCVocabulary | None) -> None:
    """Let audio tokens of a fresh connector enter the LLM at the size of its own embeddings.

    Args:
        model: its connector is changed in place.
        vocabulary: what a `ctc_compressor` hears; None for the others.
    """
    size = _embedding_size(model)
    match model.connector:
        case StackedMLP() as connector:
            nn.init.constant_(connector.norm_out.weight, size)
        case CTCCompressor() as connector:
            assert vocabulary is not None
            _give_rows(model, connector, vocabulary)
            _give_spelling(connector, vocabulary)
            nn.init.zeros_(connector.detail.weight)
            if connector.speller is not None:
                nn.init.zeros_(connector.speller.to_letters.weight)
            if connector.namer is None:
                nn.init.constant_(connector.norm_sound.weight, size)
            else:
                nn.init.zeros_(connector.sound_out.weight)
                nn.init.zeros_(connector.sound_out.bias)


@torch.no_grad()
def _give_rows(model: StapesForConditionalGeneration, connector: CTCCompressor, vocabulary: CTCVocabulary) -> None:
    """Copy the rows of the LLM's table that CTC is taught against."""
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    ids = torch.tensor(vocabulary.token_ids, device=embeddings.weight.device)
    # In parts: all at once would be there a second time for a moment, 76 MB of them in stapes-tiny.
    for rows, part in zip(connector.token_embeddings.weight.split(4096), ids.split(4096), strict=True):
        rows.copy_(embeddings(part))


def _give_spelling(connector: CTCCompressor, vocabulary: CTCVocabulary) -> None:
    """Tell a connector that knows pieces by their letters which those are."""
    if connector.speller is None:
        return
    groups, spelling = letter_groups(vocabulary.pieces)
    if (known := connector.speller.groups.num_embeddings - 1) != len(groups):
        raise ValueError(f"its pieces consist of {len(groups)} groups of letters, its connector knows {known}")
    connector.speller.spelling.copy_(spelling)


def _generation_config(
    language_model: PreTrainedModel, tokenizer: Any, family: Family | None, audio_token_id: int
) -> GenerationConfig:
    """Greedy unless asked otherwise: an LLM's own sampling defaults do not suit transcription."""
    stated = cast(GenerationConfig, language_model.generation_config).eos_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        # A chat LLM ends its turn with symbols that its generation settings do not always list.
        eos_token_id=end_token_ids(tokenizer, family, stated),
        pad_token_id=tokenizer.pad_token_id,
        # It stands for audio in a prompt; in an answer it would be taken for a place that wants audio.
        suppress_tokens=[audio_token_id],
    )


def _build_processor(
    feature_extractor: StapesFeatureExtractor, tokenizer: Any, audio_token: str, template: str, config: ConnectorConfig
) -> StapesProcessor:
    return StapesProcessor(
        feature_extractor,
        tokenizer,
        audio_token=audio_token,
        prompt_template=template,
        frames_per_window=config.frames_per_window,
        queries_per_window=config.queries_per_window,
        tail=config.tail,
    )


def _load_trained_part(
    folder: Path, tokenizer: Any, dtype: torch.dtype, fold_lora: bool
) -> StapesForConditionalGeneration:
    with reading(folder):
        config = StapesConfig.from_pretrained(folder)
    if not config.sources:
        raise ModelFolderError(
            f"{folder}: config.json names no `sources` for the weights that {TRAINED_FILE} leaves out"
        )
    base = _find_base(folder, config.sources)
    speech, sound, _ = load_encoders({part: str(found) for part, found in base.items()}, None, dtype)
    # In full precision first: other values than those of the training would be quantised to other bits.
    language_model = load_language_model(str(base["llm"]), torch.float32 if nf4.settings_of(config) else dtype)
    with reading(folder):
        nf4.quantize_again(language_model, config)
    settings, adapters = config.lora, dict[str, torch.Size]()
    if fold_lora and settings is not None and (adapters := lora.foldable(language_model, settings)):
        config.lora = None
    with reading(folder):
        with no_init_weights():  # the file holds all that is not given here
            model = StapesForConditionalGeneration(config, speech, language_model, sound)
        model.generation_config = GenerationConfig.from_pretrained(folder)
    cast(nn.Module, model).to(dtype)
    with reading(folder / TRAINED_FILE):
        tensors = load_file(folder / TRAINED_FILE)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if _is_trained(name, config)}
    wanted |= {f"language_model.{name}": shape for name, shape in adapters.items()}
    mismatched = {name for name in wanted.keys() & tensors.keys() if wanted[name] != tensors[name].shape}
    refuse(folder, wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys(), mismatched)
    model.load_state_dict(tensors, strict=False)
    if isinstance(model.connector, CTCCompressor):
        _tell_vocabulary(folder, model, tokenizer)
    if adapters:
        assert settings is not None
        lora.fold(language_model, settings, {name: tensors[f"language_model.{name}"] for name in adapters})
        config.note_merged()
    return model


def _tell_vocabulary(folder: Path, model: StapesForConditionalGeneration, tokenizer: Any) -> None:
    """Give a `ctc_compressor` what follows from the LLM's tokenizer and table."""
    config, connector = cast(StapesConfig, model.config), cast(CTCCompressor, model.connector)
    with reading(folder):
        vocabulary = CTCVocabulary.of(tokenizer, config.connector_config.ctc_merges)
        if len(vocabulary) != (wanted_rows := config.connector_config.num_ctc_tokens):
            raise ValueError(f"its tokenizer spells {len(vocabulary)} pieces, its connector hears {wanted_rows}")
        _give_spelling(connector, vocabulary)
    if not _is_trained(_CTC_ROWS, config):
        _give_rows(model, connector, vocabulary)


def _find_base(folder: Path, sources: dict[str, str]) -> dict[str, Path]:
    """Find the weights that a trained part leaves out; raise if a name leads to others than it was trained on."""
    noted = read_object(folder / BASE_FILE) if (folder / BASE_FILE).exists() else {}
    base: dict[str, Path] = {}
    for part, name in sources.items():
        was = noted.get(part)
        base[part] = found = weights.resolve_again(name, was["source"] if was else {})
        origin = weights.source(found)
        # A Hub revision or a pinned mirror is what it says; only folders have to be read to know them.
        if not was or (origin["from"] != "folder" and {**origin, "date": 0} == {**was["source"], "date": 0}):
            continue
        if weights.describe(found)["sha256"] != was["sha256"]:
            raise ModelFolderError(
                f"{folder}: was trained on other weights of `{name}` than those in {found}; get them back, or "
                f"delete {BASE_FILE} to use what is there, knowing that answers will differ"
            )
    return base
