"""The typed sections of a recipe: the only place where a default of a recipe stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from ..errors import RecipeError
from .augmentation import Augment
from .section import Section

Part = Literal["speech_encoder", "sound_encoder", "connector", "language_model", "lora"]

_STEPS = ("data_check", "base", "eval", "bench", "report")
_ENCODER_FRAMES_PER_S = 50
"""Of any Whisper."""


class WindowedQFormer(Section):
    """SALMONN's connector: queries attend to one window of encoder frames at a time."""

    kind: Literal["windowed_qformer"]
    window_s: float = Field(0.34, ge=0.02, le=30)  # encoder frames are 20 ms apart
    queries_per_window: int = Field(1, ge=1)
    tail: Literal["pad", "drop"] = "pad"
    hidden_size: int = Field(768, ge=1)
    num_layers: int = Field(2, ge=1)
    num_heads: int = Field(12, ge=1)
    intermediate_size: int = Field(3072, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def frames_per_window(self) -> int:
        """K: encoder frames, 20 ms apart, that come nearest to `window_s`; at least 1."""
        return max(1, round(self.window_s * _ENCODER_FRAMES_PER_S))

    @model_validator(mode="after")
    def _heads_divide(self) -> WindowedQFormer:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide by num_heads {self.num_heads}")
        return self


class StackedMLP(Section):
    """Ultravox's connector: `stack` encoder frames (20 ms each) side by side through a gated MLP."""

    kind: Literal["stacked_mlp"]
    stack: int = Field(8, ge=1)
    hidden_size: int = Field(2048, ge=2, multiple_of=2)


class CTCCompressor(Section):
    """A Transformer taught by CTC; its audio tokens are the pieces of words it hears, and sound in the slots left."""

    kind: Literal["ctc_compressor"]
    slot_s: float = Field(0.16, ge=0.04, le=2)  # one audio token for each, whatever it will hold
    step_s: float = Field(0.08, ge=0.04, le=0.32)  # CTC's; at most one piece a step
    merges: int = Field(12000, ge=1)  # of the LLM's BPE; few: short pieces, many of them, each of them often heard
    sharpness: float = Field(1.0, gt=0)  # of what the LLM reads; 6: nearly always the piece that was heard best
    spelling: int = Field(0, ge=0)  # width of what knows the pieces by their letters; 0: nothing does
    letters: int = Field(0, ge=0, le=4096, multiple_of=64)  # width of what hears letters; 0: nothing does
    phones: int = Field(0, ge=0, le=4096, multiple_of=64)  # likewise of what hears phones, which takes `words`
    ctc_weight: float = Field(0.0, ge=0, le=1)  # CTC's say in a transcript, beside the LLM's
    # A file with the words that a transcript may hold, which are then searched for among the letters heard; or, if it
    # tells how they are spoken, among the phones.
    words: Path | None = Field(None, exclude_if=lambda value: value is None)
    sound_layer: int | None = Field(None, ge=1)  # speech encoder's, to name sounds from, see `objective: sound`
    hidden_size: int = Field(512, ge=1)
    num_layers: int = Field(2, ge=1)
    num_heads: int = Field(8, ge=1)
    intermediate_size: int = Field(2048, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def frames_per_slot(self) -> int:
        """K: encoder frames, 20 ms apart, that come nearest to `slot_s`."""
        return round(self.slot_s * _ENCODER_FRAMES_PER_S)

    @property
    def stride(self) -> int:
        """Encoder frames to one step of CTC."""
        return round(self.step_s * _ENCODER_FRAMES_PER_S)

    @model_validator(mode="after")
    def _shape_fits(self) -> CTCCompressor:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide by num_heads {self.num_heads}")
        if self.step_s > self.slot_s:
            raise ValueError(f"step_s {self.step_s:g} is longer than slot_s {self.slot_s:g}")
        if self.stride % 2:
            raise ValueError(f"step_s is {self.step_s:g}; wanted a multiple of 0.04")
        if self.words is not None and not self.phones and not (self.letters and self.ctc_weight):
            raise ValueError("words are searched for among letters: give `letters` and a `ctc_weight`, too")
        return self


Connector = Annotated[WindowedQFormer | StackedMLP | CTCCompressor, Field(discriminator="kind")]


class Model(Section):
    """What the audio language model is made of. Names are Hub ids, or folders if they begin with `.` or `/`."""

    speech_encoder: str
    llm: str
    sound_encoder: str | None = None  # beside it: BEATs or EAT, as `stapes convert` writes them, AST, CLAP, HuBERT, …
    connector: Connector
    prompt: str = "chat"  # the LLM's chat template; `plain`: SALMONN's USER/ASSISTANT; or a text with both fields
    audio_token: str | None = None  # a reserved token of the tokenizer; found by itself where possible
    pad_audio_to_s: float | None = Field(None, gt=0)  # 30 for checkpoints that were trained on padded clips
    # Whether code that lies with the LLM's weights may run. Left out where it is the default, like the other key of
    # this kind below: what was made before these keys were there is still made from the same settings.
    trust_remote_code: bool = Field(False, exclude_if=lambda value: not value)

    @model_validator(mode="after")
    def _prompt_has_fields(self) -> Model:
        if self.prompt not in ("chat", "plain"):
            for field in ("{audio}", "{instruction}"):
                if self.prompt.count(field) != 1:
                    raise ValueError(f"prompt must be `chat`, `plain` or a text with one {field}, not {self.prompt!r}")
        return self


class FixedClip(Section):
    """Gradients are scaled down to `max_norm`."""

    kind: Literal["fixed"]
    max_norm: float = Field(1.0, gt=0)


class DynamicClip(Section):
    """AutoClip (arXiv 2007.14469): the limit is a percentile of the gradient norms of the last `window` steps."""

    kind: Literal["dynamic"]
    percentile: float = Field(10.0, gt=0, le=100)
    window: int = Field(1000, ge=1)


def _module_names(value: Any) -> Any:
    # Checked before the union of both forms, which would complain twice.
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return value
    if isinstance(value, str) and value:
        return value
    raise ValueError("wants a list of module names, or one text: `all-linear`, or a regular expression")


class LoRA(Section):
    """Keys of peft's LoraConfig."""

    r: int = Field(8, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    target_modules: Annotated[tuple[str, ...] | str, BeforeValidator(_module_names)] = ("q_proj", "v_proj")
    # Experts of a mixture, e.g. `mlp.experts.down_proj`.
    target_parameters: tuple[str, ...] = Field((), exclude_if=lambda value: not value)

    @model_validator(mode="after")
    def _experts_without_dropout(self) -> LoRA:
        if self.target_parameters and self.lora_dropout:
            raise ValueError(
                f"target_parameters: adapters of experts know no dropout, but lora_dropout is {self.lora_dropout:g}; "
                "set it to 0"
            )
        return self


class Quantization(Section):
    """QLoRA (arXiv 2305.14314): the LLM's Linear layers are kept in 4 bits while adapters are trained."""

    bits: Literal[4] = 4
    kind: Literal["nf4"] = "nf4"
    double_quant: bool = True  # the scales are quantised too


class Stage(Section):
    """One stage of training. Keys that TrainingArguments has carry its names.

    `objective: answer` is the LLM's own loss on what it is to answer. `ctc` teaches a `ctc_compressor` to hear what is
    said, without the LLM: from samples for `asr`, and from those for `audiocaption`, in which nothing is said. If it
    has `letters` or `phones`, it learns those too; `letters` and `phones` teach those alone. `sound` teaches one that
    has a `sound_layer` the words of captions; in samples for `asr` it is to hear that someone speaks.
    In stages for `answer` that hearing stays as it is, and the connector's other weights learn.
    """

    objective: Literal["answer", "ctc", "letters", "phones", "sound"] = "answer"
    data: dict[Path, float] = Field(min_length=1)  # manifest: share of the samples drawn
    valid: tuple[Path, ...] = ()  # manifests whose loss is measured each `save_steps`
    trainable: tuple[Part, ...] = Field(("connector",), min_length=1)
    # Of a trainable speech encoder, how many of its last layers learn, with the norm after them; left out: all of it.
    speech_encoder_layers: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    lora: LoRA | None = None
    quantization: Quantization | None = None
    max_steps: int = Field(ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    per_device_train_batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    clip: FixedClip | DynamicClip = Field(FixedClip.model_validate({"kind": "fixed"}), discriminator="kind")
    augment: Augment | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    feature_cache: bool = True  # keep a frozen encoder's output on disk
    save_steps: int = Field(100, ge=1)
    logging_steps: int = Field(10, ge=1)
    trainer: dict[str, Any] = Field(default_factory=dict)  # any other field of TrainingArguments

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        useless = {"answer": set(), "sound": {*get_args(Part)} - {"connector"}}
        if idle := sorted(useless.get(self.objective, {"lora", "language_model"}) & set(self.trainable)):
            raise ValueError(
                f"`objective: {self.objective}` has no use for {' and '.join(idle)}; take that out of `trainable`"
            )
        if self.augment and self.augment.frames:
            if not self.feature_cache:
                raise ValueError("`augment.frames` acts on stored encoder output; drop it or `feature_cache: false`")
            if learning := sorted({"speech_encoder", "sound_encoder"} & set(self.trainable)):
                raise ValueError(
                    f"`augment.frames` acts on stored encoder output, and that of a {learning[0]} that learns is not "
                    "stored; take one of the two out"
                )
        if self.quantization is not None and "language_model" in self.trainable:
            raise ValueError("`quantization`: weights in 4 bits cannot learn; take `language_model` out of `trainable`")
        if self.speech_encoder_layers is not None and "speech_encoder" not in self.trainable:
            raise ValueError(
                "`speech_encoder_layers` is set but `trainable` does not list speech_encoder; add it or drop the key"
            )
        if self.lora is not None and "lora" not in self.trainable:
            raise ValueError("`lora` is set but `trainable` does not list it; add it to `trainable` or drop `lora`")
        for path, weight in self.data.items():
            if not weight > 0:
                raise ValueError(f"data: the weight of {path} is {weight}; weights are shares above 0")
        repeated = sorted(set(self.trainer) & (set(type(self).model_fields) | {"output_dir", "max_grad_norm", "seed"}))
        if repeated:
            raise ValueError(
                f"trainer: {', '.join(repeated)} is set by the recipe itself; use the key beside `trainer`"
            )
        return self


class MergeLora(Section):
    """Fold the adapters into the weights: same answers, fewer operations."""

    kind: Literal["merge_lora"]


class Quantize(Section):
    """Store Linear layers of encoder and LLM as int8 (per output channel) and compute with them on a CPU."""

    kind: Literal["quantize"]
    bits: Literal[8] = 8
    skip: tuple[str, ...] = ("connector",)  # modules whose name holds one of these stay as they are, 4 bits too


CompressStep = Annotated[MergeLora | Quantize, Field(discriminator="kind")]


class Evaluate(Section):
    """What variants are scored on. Test data: never the data of a stage."""

    data: tuple[Path, ...] = Field(min_length=1)
    batch_size: int = Field(8, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    limit: int | None = Field(None, ge=1)  # first N samples of each manifest


class Bench(Section):
    """How latency and memory are measured."""

    audio_s: float = Field(10.0, gt=0)
    new_tokens: int = Field(16, ge=2)
    warmup: int = Field(3, ge=0)
    repeats: int = Field(20, ge=1)


class Report(Section):
    """What the report shows beside the table."""

    samples: int = Field(8, ge=0)


class Recipe(Section):
    """From audio files to a compared report."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**32)
    model: Model | None = None
    start_from: str | None = None  # in place of `model`: a model folder, or `stapes-tiny`, to train or compress further
    train: dict[str, Stage] = Field(default_factory=dict)  # may be empty with `start_from`
    compress: tuple[CompressStep, ...] = ()
    evaluate: Evaluate | None = None
    bench: Bench | None = Field(default_factory=lambda: Bench.model_validate({}))
    report: Report = Field(default_factory=lambda: Report.model_validate({}))

    @property
    def parts(self) -> Model:
        """What the model is built from.

        Raises:
            RecipeError: if the recipe starts from a trained model.
        """
        if self.model is None:
            raise RecipeError(
                f"{self.name}: the recipe starts from {self.start_from}; name its parts in a `model` section instead"
            )
        return self.model

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        kinds = [step.kind for step in self.compress]
        for name in self.train:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in {*_STEPS, *kinds}:
                raise ValueError(f"train: `{name}` cannot name a stage; use lower-case letters, e.g. `align`")
        adapters = [stage.lora for stage in self.train.values() if stage.lora]
        for name, stage in self.train.items():
            if stage.lora and stage.lora != adapters[0]:
                raise ValueError(
                    f"train.{name}.lora: adapters stay for later stages and cannot change their shape; drop it"
                )
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"compress: each kind of step may stand once, not {', '.join(kinds)}")
        if (self.model is None) == (self.start_from is None):
            raise ValueError("wants either `model`, to build one, or `start_from`, to go on from a trained one")
        if self.model is not None:
            self._check_order(self.model)
        if adapters and "quantize" in kinds and "merge_lora" not in kinds[: kinds.index("quantize")]:
            raise ValueError("compress: `quantize` needs merged adapters; put {kind: merge_lora} before it")
        return self

    def _check_order(self, model: Model) -> None:
        """Refuse a stage or a step that needs another one before it; a trained model may bring what is needed."""
        sound_layer = getattr(model.connector, "sound_layer", None)
        if sound_layer is not None and model.sound_encoder is not None:
            raise ValueError("model: sounds are heard by a `sound_encoder` or by a `sound_layer`, not by both")
        if not self.train:
            raise ValueError("train is missing; a model that is built here has to learn in at least one stage")
        hears, has_lora, kind = model.connector.kind != "ctc_compressor", False, model.connector.kind
        has_words = getattr(model.connector, "words", None) is not None
        for name, stage in self.train.items():
            has_lora |= stage.lora is not None
            if "sound_encoder" in stage.trainable and model.sound_encoder is None:
                raise ValueError(f"train.{name}: `trainable` lists sound_encoder, but `model.sound_encoder` is not set")
            if stage.objective != "answer" and kind != "ctc_compressor":
                raise ValueError(
                    f"train.{name}: `objective: {stage.objective}` teaches a connector of kind ctc_compressor, "
                    f"not {kind}"
                )
            if stage.objective == "sound" and sound_layer is None:
                raise ValueError(f"train.{name}: `objective: sound` wants `sound_layer` in `model.connector`")
            wanted = stage.objective
            if wanted in ("letters", "phones") and not getattr(model.connector, wanted, 0):
                raise ValueError(f"train.{name}: `objective: {wanted}` wants `{wanted}` in `model.connector`")
            if wanted in ("ctc", "phones") and getattr(model.connector, "phones", 0) and not has_words:
                raise ValueError(
                    f"train.{name}: to teach phones takes `words` in `model.connector`, with how to speak them"
                )
            hears |= wanted == "ctc"
            if not hears and wanted not in ("letters", "phones"):
                raise ValueError(
                    f"train.{name}: a ctc_compressor hears nothing before a stage with `objective: ctc`; put one first"
                )
            if "lora" in stage.trainable and not has_lora:
                raise ValueError(f"train.{name}: `trainable` lists lora, but no stage up to here has a `lora` section")
        if "merge_lora" in [step.kind for step in self.compress] and not has_lora:
            raise ValueError("compress: `merge_lora` has nothing to merge; no stage has a `lora` section")
