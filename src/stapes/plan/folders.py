"""What a recipe that goes on from a trained model goes on from, read from the folder's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ..defaults import find_model
from ..errors import ModelFolderError
from ..files import read_json
from ..recipe import Model, Recipe
from .shapes import Adapters, Quantization

_FRAMES_PER_S = 50  # of a Whisper's encoder
_SHARED = {"hidden_size": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
_SHARED |= {"intermediate_size": "intermediate_size", "dropout": "dropout"}


@dataclass(frozen=True)
class TrainedModel:
    """A model folder as a recipe would have described it.

    Attributes:
        model: its parts.
        adapters: LoRA in its LLM, None without or after merging.
        quantization: of the LLM's linears in 4 bits, None without.
        int8_skip: modules that stay as they are where Linears are int8; None where they are not.
        is_complete: its folder holds all weights, not only those that training changed.
    """

    model: Model
    adapters: Adapters | None
    quantization: Quantization | None
    int8_skip: tuple[str, ...] | None
    is_complete: bool


def parts_of(recipe: Recipe) -> Model:
    """Return the parts of a recipe's model, from the folder that it starts from where it does not name them.

    Raises:
        ModelFolderError: if there is no such folder, or it does not tell.
    """
    return recipe.model if recipe.model is not None else read_trained(recipe).model


def read_trained(recipe: Recipe) -> TrainedModel:
    """Read the folder that `recipe.start_from` names.

    Raises:
        ModelFolderError: if it is no model folder, or does not name where its parts come from.
    """
    folder = find_model(recipe.start_from)
    if not (folder / "config.json").exists():
        raise ModelFolderError(f"{folder}: no such model folder")
    config, processor = read_json(folder / "config.json"), read_json(folder / "processor_config.json")
    try:
        sources = config["sources"]
        model = Model.model_validate(
            {
                "speech_encoder": sources["speech_encoder"],
                "llm": sources["llm"],
                "sound_encoder": sources.get("sound_encoder"),
                "connector": _connector_section(config["connector_config"]),
                "prompt": processor["prompt_template"],
                "pad_audio_to_s": processor["feature_extractor"].get("pad_to_s"),
            }
        )
        lora, bits = config.get("lora"), config.get("quantization_config")
        return TrainedModel(
            model,
            _read_adapters(lora) if lora else None,
            Quantization("nf4", double_quant=bool(bits.get("bnb_4bit_use_double_quant"))) if bits else None,
            tuple(config["int8"]["skip"]) if config.get("int8") else None,
            is_complete=not (folder / "trained.safetensors").exists(),
        )
    except (KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"{folder}: its configuration does not tell what it is made of ({reason})") from error


def _read_adapters(lora: dict[str, Any]) -> Adapters:
    targets = lora["target_modules"]
    parameters = tuple(lora.get("target_parameters") or ())
    return Adapters(lora["r"], targets if isinstance(targets, str) else tuple(targets), parameters)


def _connector_section(config: dict[str, Any]) -> dict[str, Any]:
    """Turn a `ConnectorConfig` back into the section of a recipe that makes it."""
    match config["kind"]:
        case "stacked_mlp":
            return {
                "kind": "stacked_mlp", "stack": config["frames_per_window"], "hidden_size": config["hidden_size"]
            }  # fmt: skip
        case "windowed_qformer":
            own = {
                "window_s": config["frames_per_window"] / _FRAMES_PER_S,
                "queries_per_window": config["queries_per_window"],
                "tail": config["tail"],
            }
        case _:
            own = {
                "slot_s": config["frames_per_window"] / _FRAMES_PER_S,
                "step_s": config["ctc_stride"] / _FRAMES_PER_S,
                "merges": config["ctc_merges"],
                "sharpness": config.get("ctc_sharpness", 1.0),
                "spelling": config.get("ctc_spelling", 0),
                "letters": config.get("ctc_letters", 0),
                "phones": config.get("ctc_phones", 0),
                "ctc_weight": config.get("ctc_weight", 0.0),
                "sound_layer": config.get("sound_layer"),
            }
    return {"kind": config["kind"], **own, **{key: config[name] for key, name in _SHARED.items()}}
