"""A recipe's models reduced to shapes: what they are made of and how it is stored, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import RecipeError
from ..recipe import CTCCompressor, MergeLora, Model, Quantize, Recipe
from .configs import NO_PIECES, FoundConfig, count_ctc_pieces, read_config
from .connector import ConnectorShape, read_connector
from .encoders import (
    ENCODER_FRAMES_PER_S,
    FEATURE_FRAMES_PER_S,
    SAMPLE_RATE_HZ,
    BeatsShape,
    SoundShape,
    WhisperShape,
    read_sound_shape,
)
from .folders import read_trained
from .llm import LLMShape
from .shapes import Adapters, Quantization, Weight, count_parameters

Part = Literal["speech_encoder", "sound_encoder", "connector", "language_model", "lora"]
PARTS: tuple[Part, ...] = ("speech_encoder", "sound_encoder", "connector", "language_model", "lora")


@dataclass(frozen=True)
class ModelPlan:
    """One variant of a recipe: a model folder that a run would make.

    Attributes:
        recipe: name of the recipe.
        variant: name of the step that makes the folder.
        speech, sound, connector, llm: shapes of the parts.
        adapters: LoRA in the LLM, None without or after merging.
        quantization: of the LLM's linears: the recipe's, or that of the checkpoint.
        int8_skip: modules that stay as they are when the linears are stored as int8; None when they are not.
        pad_audio_to_s: silence up to this length is encoded too.
        dropped_layers: layers taken out after loading: (speech encoder, LLM).
        sources: part → where its shape was read.
        converted: parts whose files hold another dtype than float32, so that loading them makes copies.
    """

    recipe: str
    variant: str
    speech: WhisperShape
    sound: SoundShape | None
    connector: ConnectorShape
    llm: LLMShape
    adapters: Adapters | None = None
    quantization: Quantization | None = None
    int8_skip: tuple[str, ...] | None = None
    pad_audio_to_s: float | None = None
    dropped_layers: tuple[int, int] = (0, 0)
    sources: tuple[tuple[str, str], ...] = ()
    converted: tuple[Part, ...] = ()

    def with_dropped(self, share: float) -> ModelPlan:
        """Return the model with this share of the layers of speech encoder and LLM to be taken out after loading."""
        return replace(self, dropped_layers=(round(share * self.speech.num_layers), round(share * self.llm.num_layers)))

    def without_dropped(self) -> ModelPlan:
        """Return the model as it is once the dropped layers are gone."""
        speech, llm = self.dropped_layers
        return replace(
            self,
            speech=replace(self.speech, num_layers=self.speech.num_layers - speech),
            llm=replace(self.llm, num_layers=self.llm.num_layers - llm),
            dropped_layers=(0, 0),
        )

    def drops(self, part: Part, weight: Weight) -> bool:
        """Tell whether a weight is in a layer that is taken out: the last ones, which are as large as any others."""
        speech, llm = self.dropped_layers
        match part:
            case "speech_encoder":
                first = self.speech.num_layers - speech
            case "language_model" | "lora":
                first = self.llm.num_layers - llm
            case _:
                return False
        _, _, layer = weight.name.partition("layers.")
        number = layer.partition(".")[0]
        return number.isdigit() and int(number) >= first

    def num_feature_frames(self, audio_s: float) -> int:
        """Count the log-mel frames F that are encoded for a clip, padding included."""
        # By samples, as the model counts: 1.13 · 100 is less than 113 in binary.
        num_samples = round(max(audio_s, self.pad_audio_to_s or 0) * SAMPLE_RATE_HZ)
        return num_samples * FEATURE_FRAMES_PER_S // SAMPLE_RATE_HZ

    def num_frames(self, audio_s: float) -> int:
        """Count the frames T that reach the connector: the speech encoder's, to which those of sound are fitted."""
        return -(-self.num_feature_frames(audio_s) // 2)

    def num_audio_tokens(self, audio_s: float) -> int:
        """Count the audio tokens A of a clip."""
        return self.connector.num_tokens(self.num_frames(audio_s))

    @property
    def audio_tokens_per_s(self) -> float:
        """Audio tokens that a second of audio becomes, in the long run."""
        queries = self.connector.num_tokens(self.connector.frames_per_window)
        return ENCODER_FRAMES_PER_S / self.connector.frames_per_window * queries

    def weights(self, *, split_experts: bool = False, vocab_size: int | None = None) -> dict[Part, list[Weight]]:
        """List the tensors of each part in the order in which a model is moved to a device; LoRA apart."""
        llm = self.llm.weights(split_experts=split_experts, vocab_size=vocab_size)
        adapters = self.adapters
        return {
            "speech_encoder": self.speech.weights(),
            "sound_encoder": self.sound.weights() if self.sound else [],
            "connector": self.connector.weights(),
            "language_model": llm,
            "lora": [pair for weight in llm if adapters and adapters.fits(weight) for pair in adapters.weights(weight)],
        }

    def parameters(self) -> dict[str, int]:
        """Count parameters by part and in `total`, tied tables once."""
        counts: dict[str, int] = {part: count_parameters(weights) for part, weights in self.weights().items()}
        return {**counts, "total": sum(counts.values())}

    def is_int8(self, part: Part, weight: Weight) -> bool:
        """Tell whether a weight is stored as int8: Linears of encoders and LLM whose name holds none of `int8_skip`.

        A table that is tied to an int8 head is one with it, unless the family scales its embeddings (Gemma): then both
        stay as they are.
        """
        if self.int8_skip is None or part not in ("speech_encoder", "sound_encoder", "language_model"):
            return False
        names = [f"{part}.{weight.name}"]
        match weight.kind:
            case "linear" | "head":
                pass
            case "embedding":
                if not self.llm.tied or self.llm.family.scales_embeddings:
                    return False
                names.append(f"{part}.lm_head")
            case _:
                return False
        return not any(skip in name for skip in self.int8_skip for name in names)


def plan_models(recipe: Recipe) -> list[ModelPlan]:
    """List the variants of a recipe: the model of its last stage, and what each step of compression makes of it.

    A recipe that starts from a trained model has that as its first variant, `base`.

    Raises:
        ModelFolderError: if the model that it starts from cannot be read.
        RecipeError: if a part is of a kind that the planner or the model cannot be.
        WeightsError: if the shape of a model that the recipe names is nowhere to be found.
    """
    plans = []
    if recipe.start_from is None:
        plan = _train_further(recipe, _plan_trained(recipe, recipe.parts, list(recipe.train)[-1]))
    else:
        trained = read_trained(recipe)
        plan = _plan_trained(recipe, trained.model, "base")
        plan = replace(plan, adapters=trained.adapters, int8_skip=trained.int8_skip)
        # Merged, it is in float32 even if the LLM that it names is stored in 4 bits.
        quantization = trained.quantization and (plan.llm.quantization or trained.quantization)
        plan = replace(plan, quantization=quantization)
        base = _written_whole(plan) if trained.is_complete else plan
        if recipe.train:
            plans.append(base)
            plan = _train_further(recipe, plan)
        else:
            plan = base
    plans.append(plan)
    # A stage's folder holds what was trained; compression writes whole folders.
    plan = _written_whole(plan)
    for step in recipe.compress:
        match step:
            case MergeLora():
                plan = replace(plan, variant=step.kind, adapters=None, quantization=_dequantized(plan))
            case Quantize():
                plan = replace(plan, variant=step.kind, int8_skip=step.skip)
                plan = plan if _keeps_4_bits(plan) else replace(plan, quantization=_dequantized(plan))
        plans.append(plan)
    return plans


def _written_whole(plan: ModelPlan) -> ModelPlan:
    """Describe a model as a complete folder: it holds all weights as they are used, in float32 or in 4 bits."""
    quantization = plan.quantization and replace(plan.quantization, is_stored=True)
    return replace(plan, converted=(), quantization=quantization)


def _keeps_4_bits(plan: ModelPlan) -> bool:
    """Tell whether `int8_skip` leaves out some of the LLM's linears, which stay in 4 bits if they are."""
    return any(w.kind == "linear" and not plan.is_int8("language_model", w) for w in plan.llm.weights())


def _dequantized(plan: ModelPlan) -> Quantization | None:
    """Tell how linears are kept once a step has written in float32 what their 4 bits stand for.

    A GPTQ stays one: our model cannot read it, and the published implementation, which can, has no such steps.
    """
    return plan.quantization if plan.quantization and plan.quantization.kind == "gptq" else None


def _train_further(recipe: Recipe, plan: ModelPlan) -> ModelPlan:
    """Give a plan what the stages of a recipe add to it."""
    loras = [stage.lora for stage in recipe.train.values() if stage.lora]
    quantizations = [stage.quantization for stage in recipe.train.values() if stage.quantization]
    adapters, quantization = plan.adapters, plan.quantization
    if loras:
        adapters = Adapters(loras[-1].r, loras[-1].target_modules, loras[-1].target_parameters)
    if quantizations and quantization is None:
        quantization = Quantization(quantizations[-1].kind, double_quant=quantizations[-1].double_quant)
    return replace(plan, variant=list(recipe.train)[-1], adapters=adapters, quantization=quantization)


def _plan_trained(recipe: Recipe, model: Model, variant: str) -> ModelPlan:
    found = {name: read_config(value) for name, value in _names(model).items()}
    speech_config = found["speech_encoder"].values
    if speech_config.get("model_type") != "whisper":
        raise RecipeError(
            f"{recipe.name}: model.speech_encoder: {model.speech_encoder} is a `{speech_config.get('model_type')}` "
            "model; a speech encoder must be a Whisper"
        )
    speech = WhisperShape.from_config(speech_config)
    sound = _read_sound(recipe.name, model, found.get("sound_encoder"))
    llm = LLMShape.from_config(found["llm"].values, model.llm)
    width = speech.width + (sound.width if sound else 0)
    connector = model.connector
    pieces = count_ctc_pieces(model.llm, connector.merges) if isinstance(connector, CTCCompressor) else NO_PIECES
    return ModelPlan(
        recipe=recipe.name,
        variant=variant,
        speech=speech,
        sound=sound,
        connector=read_connector(model.connector, width, llm.width, pieces),
        llm=llm,
        quantization=llm.quantization,
        pad_audio_to_s=model.pad_audio_to_s,
        sources=tuple((part, config.source) for part, config in found.items()),
        converted=tuple(_PART_OF[part] for part, config in found.items() if _is_half(config.values)),
    )


_PART_OF: dict[str, Part] = {
    "speech_encoder": "speech_encoder",
    "sound_encoder": "sound_encoder",
    "llm": "language_model",
}


def _is_half(config: Mapping[str, Any]) -> bool:
    return (config.get("dtype") or config.get("torch_dtype") or "float32") != "float32"


def _names(model: Model) -> dict[str, str]:
    names = {"speech_encoder": model.speech_encoder, "sound_encoder": model.sound_encoder, "llm": model.llm}
    return {part: name for part, name in names.items() if name is not None}


def _read_sound(recipe: str, model: Model, found: FoundConfig | None) -> SoundShape | None:
    if found is None:
        return None
    sound = read_sound_shape(found.values)
    if sound is None:
        raise RecipeError(
            f"{recipe}: model.sound_encoder: {model.sound_encoder} is a "
            f"`{found.values.get('model_type')}` model; only of a BEATs or an EAT the shapes are known here"
        )
    return sound


def describe_parts(plan: ModelPlan) -> dict[str, Any]:
    """Say in words what the parts are, JSON-ready."""
    sound = {None: None, BeatsShape: "BEATs"}.get(type(plan.sound) if plan.sound else None, "EAT")
    return {
        "speech_encoder": f"Whisper, {plan.speech.num_layers} layers of {plan.speech.width}",
        "sound_encoder": sound,
        "connector": f"{type(plan.connector).__name__.removesuffix('Shape')}",
        "llm": f"{plan.llm.model_type}, {plan.llm.num_layers} layers of {plan.llm.width}",
    }
