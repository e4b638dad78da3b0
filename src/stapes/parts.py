"""The parts of a model by name, loaded strictly: whole, readable and of the right kind, or there is an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    ClapAudioModel,
    PreTrainedModel,
    WhisperConfig,
)

from . import weights
from .errors import ModelFolderError, StapesError
from .files import read_json
from .model import (
    TOWER_TYPES,
    BeatsFeatureExtractor,
    EatFeatureExtractor,
    SoundTower,
    SoundTowerFeatureExtractor,
    StapesConfig,
    StapesFeatureExtractor,
    describe_tower,
    nf4,
)
from .model.families import Family, find_family
from .model.speech_encoder import SpeechEncoder


def load_encoders(
    sources: dict[str, str], pad_audio_to_s: float | None, dtype: torch.dtype
) -> tuple[SpeechEncoder, PreTrainedModel | None, StapesFeatureExtractor]:
    """Load the encoders that `sources` names (`StapesConfig.sources`), and the front end of both."""
    speech, feature_extractor = _load_speech_encoder(sources["speech_encoder"], pad_audio_to_s, dtype)
    if "sound_encoder" not in sources:
        return speech, None, feature_extractor
    sound, feature_extractor.sound = _load_sound_encoder(sources["sound_encoder"], dtype)
    return speech, sound, feature_extractor


def _load_speech_encoder(
    name: str, pad_audio_to_s: float | None, dtype: torch.dtype
) -> tuple[SpeechEncoder, StapesFeatureExtractor]:
    folder = weights.resolve(name)
    model_type = read_object(folder / "config.json").get("model_type")
    if model_type != "whisper":
        raise ModelFolderError(f"{name}: is a `{model_type}` model; a speech encoder must be a Whisper")
    with reading(name):
        feature_extractor = StapesFeatureExtractor.from_pretrained(folder)
        config = WhisperConfig.from_pretrained(folder)
    # Set here: `from_pretrained` drops settings that the folder's own file does not name.
    feature_extractor.pad_to_s = pad_audio_to_s
    encoder = load_strictly(
        SpeechEncoder,
        name,
        folder,
        config=config,
        dtype=dtype,
        key_mapping={r"^model\.encoder\.": "", r"^encoder\.": ""},
    )
    return encoder, feature_extractor


def _load_sound_encoder(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a BEATs, an EAT or an audio model of transformers, and the settings of its front end."""
    folder = weights.resolve(name)
    front_ends = {"stapes_beats": BeatsFeatureExtractor, "stapes_eat": EatFeatureExtractor}
    model_type = read_object(folder / "config.json").get("model_type")
    if model_type in TOWER_TYPES or model_type == "clap":
        return _load_sound_tower(name, folder, dtype)
    if model_type not in front_ends:
        raise ModelFolderError(
            f"{name}: is a `{model_type}` model; a sound encoder must be a BEATs or an EAT, of which `stapes convert "
            f"beats` and `stapes convert eat` make folders, or one of {', '.join(['clap', *TOWER_TYPES])}"
        )
    with reading(name):
        front_end = front_ends[model_type].from_pretrained(folder)
    return load_strictly(AutoModel, name, folder, dtype=dtype), front_end.to_dict()


def _load_sound_tower(name: str, folder: Path, dtype: torch.dtype) -> tuple[SoundTower, dict[str, Any]]:
    with reading(name):
        front_end = AutoFeatureExtractor.from_pretrained(folder).to_dict()
        config = AutoConfig.from_pretrained(folder)
        described = describe_tower(getattr(config, "audio_config", config), front_end)
    is_clap = described.tower_config.model_type == "clap_audio_model"
    settings: dict[str, Any] = {"key_mapping": {r"^audio_model\.": ""}} if is_clap else {}
    tower = load_strictly(
        ClapAudioModel if is_clap else AutoModel, name, folder, config=described.tower_config, dtype=dtype, **settings
    )
    return SoundTower(described, tower), SoundTowerFeatureExtractor(front_end).to_dict()


def load_language_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal LM.

    Raises:
        ModelFolderError: if it is a model of another kind, or its weights are missing, damaged or stored in a form that
            is not read.
    """
    folder = weights.resolve(name)
    config = read_object(folder / "config.json")
    check_stored(name, config)
    if config.get("is_encoder_decoder") or config.get("model_type") in ("whisper", StapesConfig.model_type):
        raise ModelFolderError(
            f"{name}: is a `{config['model_type']}` model; the LLM must be one that reads text alone"
        )
    return load_strictly(AutoModelForCausalLM, name, folder, dtype=dtype)


def load_tokenizer(llm: str) -> tuple[Any, Family | None, int]:
    """Load an LLM's tokenizer, and tell its family and how many tokens its table has room for.

    Raises:
        ModelFolderError: if it cannot be read.
        WeightsError: if the LLM's code lies with its weights and is not allowed.
    """
    weights.admit_code(llm)
    folder = weights.resolve(llm)
    config = read_object(folder / "config.json")
    with reading(llm):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer, find_family(config.get("model_type"), tokenizer), config.get("vocab_size", 0)


def check_stored(where: str | Path, config: dict[str, Any]) -> None:
    """Raise if `config.json` says that weights are stored quantised in a form that is not read."""
    try:
        nf4.check_stored(config.get("quantization_config"))
    except ValueError as error:
        raise ModelFolderError(f"{where}: {error}") from error


def load_strictly(loader: Any, where: str | Path, folder: Path, *, whole: bool = False, **settings: Any) -> Any:
    """Load a model and raise if a tensor is missing: transformers would fill the gap with random numbers.

    Args:
        loader: a model class or Auto class.
        where: what error messages call the folder.
        folder: the folder.
        whole: refuse tensors that are left over, too.
        settings: for `from_pretrained`.
    """
    with reading(where):
        model, info = loader.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    mismatched = {name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]}
    refuse(where, info["missing_keys"], info["unexpected_keys"] if whole else (), mismatched)
    return model


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Turn what the libraries raise about files they cannot use into one line that names the folder."""
    try:
        yield
    except StapesError:
        raise
    except (SafetensorError, StrictDataclassError, OSError, ValueError, TypeError, KeyError) as error:
        reason = shorten(str(error), 300, placeholder=" …")
        raise ModelFolderError(f"{where}: cannot be read: {reason}; copy or download it again") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder."""
    if not path.parent.is_dir():
        raise ModelFolderError(f"{path.parent}: no such model folder")
    if not path.exists():
        raise ModelFolderError(f"{path.parent}: {path.name} is missing; the copy or download is incomplete")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path}: holds no JSON object; copy or download the folder again")
    return content


def refuse(where: str | Path, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]) -> None:
    """Raise if any tensor is missing, left over or of another shape: such a model would answer nonsense."""
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        if names := sorted(names):
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            problems.append(f"{len(names)} {what}: {shown}")
    if problems:
        raise ModelFolderError(f"{where}: weights do not fit config.json: {'; '.join(problems)}")
