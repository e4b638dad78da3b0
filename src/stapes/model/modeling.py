"""Speech encoder → connector → LLM, as one Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from . import lora
from .configuration import StapesConfig
from .connectors import WindowedQFormer, build_connector, join_frames
from .ctc_compressor import CTCCompressor, Heard
from .nf4 import layers_of, num_values, stay_plain
from .speech_encoder import SpeechEncoder, is_last_speech_layer

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

_AUDIO_INPUTS = (
    "input_features",
    "input_features_mask",
    "sound_features",
    "sound_features_mask",
    "encoder_frames",
    "encoder_frames_mask",
)


class StapesForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """An audio language model: text in and out, with audio embeddings in place of the prompt's audio tokens.

    `generate` is transformers' own; it takes what the processor returns. The parts are attributes: `speech_encoder`,
    `sound_encoder` (None without one), `connector`, `language_model`. LoRA adapters, once added, live inside
    `language_model` and are saved and loaded with the rest (`config.lora` says that they are there).
    """

    config_class = StapesConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]  # noqa: RUF012 - the base class declares it so
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["WhisperEncoderLayer", "BeatsLayer", "EatLayer"]  # noqa: RUF012 - the base class declares it so

    def __init__(
        self,
        config: StapesConfig,
        speech_encoder: SpeechEncoder | None = None,
        language_model: PreTrainedModel | None = None,
        sound_encoder: PreTrainedModel | None = None,
    ) -> None:
        """Build the model; parts that are given are used as they are, the others get random weights."""
        super().__init__(config)
        self.speech_encoder = speech_encoder or SpeechEncoder(config.speech_config)
        self.speech_encoder.tap_layer = config.connector_config.sound_layer
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.sound_encoder: PreTrainedModel | None = None
        if config.sound_config is not None:
            self.sound_encoder = sound_encoder or AutoModel.from_config(config.sound_config)
        self.connector = build_connector(
            config.connector_config,
            config.speech_config.d_model,
            config.text_config.get_text_config().hidden_size,
            config.sound_config.hidden_size if config.sound_config is not None else 0,
        )
        if config.int8 is not None:
            from .int8 import swap_linears

            swap_linears(self, skip=config.int8["skip"])
        self.post_init()
        if config.lora is not None:
            # After post_init: peft's own initialisation (B = 0) is the one that leaves the LLM as it was.
            lora.inject(self.language_model, **config.lora)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WindowedQFormer):
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """Return the LLM's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the LLM's head."""
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """Return the LLM without its head."""
        return self.language_model.get_decoder()

    def add_lora(self, **settings: Any) -> None:
        """Put fresh LoRA adapters into the LLM; the outputs stay as they were until the adapters are trained.

        Args:
            settings: keyword arguments of peft's `LoraConfig` (`r`, `lora_alpha`, `target_modules`, …).

        Raises:
            ValueError: if adapters are there already.
        """
        if self.config.lora is not None:
            raise ValueError("the LLM has LoRA adapters already; merge them first (`merge_lora`)")
        self.config.lora = lora.inject(self.language_model, **settings)

    def set_trainable(self, parts: set[str], speech_encoder_layers: int | None = None) -> None:
        """Let gradients reach the named parts only; everything else is frozen and stays in eval mode.

        Args:
            parts: any of `speech_encoder`, `sound_encoder`, `connector`, `language_model`, `lora`.
            speech_encoder_layers: of a trainable speech encoder, only so many of its last layers learn, and the norm
                after them; None for all of it.

        Raises:
            ValueError: if the LLM is to learn whose weights are in 4 bits, or the encoder has fewer layers.
        """
        num_layers = len(self.speech_encoder.layers)
        if speech_encoder_layers is not None and speech_encoder_layers > num_layers:
            raise ValueError(
                f"`speech_encoder_layers` is {speech_encoder_layers}, but the speech encoder has {num_layers} layers"
            )
        if "language_model" in parts and any(layers_of(self.language_model)):
            raise ValueError("the LLM's weights are in 4 bits and cannot learn; train `lora` instead")
        for name, parameter in self.named_parameters():
            part = "lora" if ".lora_" in name else name.partition(".")[0]
            # Whisper's position table is a formula, not learnt.
            is_fixed = name == "speech_encoder.embed_positions.weight"
            if part == "speech_encoder" and speech_encoder_layers is not None:
                is_fixed = not is_last_speech_layer(name, num_layers, speech_encoder_layers)
            parameter.requires_grad_(part in parts and not is_fixed)
        self.train(self.training)

    def train(self, mode: bool = True) -> StapesForConditionalGeneration:
        """Switch training mode, but keep frozen parts in eval mode: no dropout in weights that do not learn.

        An LLM with trainable adapters counts as trainable, so that LoRA dropout and gradient checkpointing work.
        """
        super().train(mode)
        for part in (self.speech_encoder, self.sound_encoder, self.connector, self.language_model):
            if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        stay_plain(self.language_model)
        return self

    def encode(
        self,
        input_features: Tensor,
        input_features_mask: Tensor | None = None,
        sound_features: Tensor | None = None,
        sound_features_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the encoders: features → frames (B, T, D) at 50 Hz and their mask (B, T).

        Args:
            input_features: (B, M, F) log-mel, for the speech encoder.
            input_features_mask: (B, F), 1 on real frames.
            sound_features: (B, F', M') fbank, for the sound encoder if there is one.
            sound_features_mask: (B, F'), 1 on real frames.

        Raises:
            ValueError: if there is a sound encoder without features for it, or features without a sound encoder.
        """
        if (self.sound_encoder is None) != (sound_features is None):
            lacks = "sound encoder" if self.sound_encoder is None else "`sound_features`"
            has = "`sound_features`" if self.sound_encoder is None else "a sound encoder"
            raise ValueError(f"there is {has} but no {lacks}; use the processor saved with this model")
        frames, frames_mask = self.speech_encoder(input_features, input_features_mask)
        if self.sound_encoder is None:
            return frames, frames_mask
        sound, _ = self.sound_encoder(sound_features, sound_features_mask)
        return join_frames(frames, frames_mask, sound), frames_mask

    def get_audio_features(
        self, input_features: Tensor, input_features_mask: Tensor | None = None, **sound: Tensor | None
    ) -> Tensor:
        """Turn features, see `encode`, into the audio embeddings of all clips, one after another: (ΣA, D_llm)."""
        return self.connect(*self.encode(input_features, input_features_mask, **sound))

    def connect(self, frames: Tensor, frames_mask: Tensor) -> Tensor:
        """Run the connector: frames (B, T, D) and their mask (B, T) → audio embeddings (ΣA, D_llm) without padding."""
        tokens, tokens_mask = self.connector(frames.to(self._connector_dtype()), frames_mask)
        return tokens[tokens_mask]

    def hear(self, frames: Tensor, frames_mask: Tensor) -> Heard:
        """Run `CTCCompressor.hear`; arguments as in `connect`."""
        assert isinstance(self.connector, CTCCompressor)
        return self.connector.hear(frames.to(self._connector_dtype()), frames_mask)

    def hearing_loss(
        self,
        labels: Tensor,
        objective: Literal["ctc", "letters", "phones", "sound"],
        beside: Mapping[Literal["letters", "phones"], Tensor] | None = None,
        encoder_frames: Tensor | None = None,
        encoder_frames_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **features: Any,
    ) -> Tensor:
        """Compute how far the connector is from hearing what is said, or what sounds; the LLM takes no part.

        Args:
            labels: (B, 1 + U) as `collate_hearing` makes them; the first column means nothing.
            objective: `ctc` for what is said, `letters` or `phones` for those alone, `sound` for what sounds.
            beside: (B, U'), letters and phones that are to be heard beside `ctc`.
            encoder_frames, encoder_frames_mask: see `forward`.
            num_items_in_batch: divides the summed loss, at least 1: clips may all be silent; the number of labels if
                not given.
            features: in place of frames, see `encode`.

        Raises:
            ValueError: if the connector is not a `ctc_compressor`.
        """
        if not isinstance(self.connector, CTCCompressor):
            raise ValueError(f"a {self.config.connector_config.kind} cannot learn to hear; take a `ctc_compressor`")
        if encoder_frames is None:
            encoder_frames, encoder_frames_mask = self.encode(**features)
        if encoder_frames_mask is None:
            encoder_frames_mask = torch.ones(encoder_frames.shape[:2], dtype=torch.bool, device=encoder_frames.device)
        frames, wanted = encoder_frames.to(self._connector_dtype()), labels[:, 1:]
        loss = self.connector.loss(objective, frames, encoder_frames_mask, wanted)
        for symbols, spelt in (beside or {}).items():
            loss = loss + self.connector.loss(symbols, frames, encoder_frames_mask, spelt)
        count = (wanted > 0).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / count.to(loss.device).clamp(min=1)

    def _connector_dtype(self) -> torch.dtype:
        return next(self.connector.parameters()).dtype

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        encoder_frames: Tensor | None = None,
        encoder_frames_mask: Tensor | None = None,
        sound_features: Tensor | None = None,
        sound_features_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token.

        Args:
            input_ids: (B, L) prompt with A audio tokens per clip.
            input_features: (B, M, F) log-mel at 100 Hz of the clips, right-padded; None once they are in the KV cache.
            input_features_mask: (B, F), 1 on real frames.
            encoder_frames: (B, T, D) in place of all features when the frozen encoders' output was stored.
            encoder_frames_mask: (B, T), True on real frames; None when nothing is padded.
            sound_features, sound_features_mask: (B, F', M') fbank and (B, F'), for a sound encoder; see `encode`.
            inputs_embeds: (B, L, D_llm) in place of `input_ids`; then no audio is placed.
            labels: (B, L) ids to learn, -100 elsewhere.
            attention_mask, position_ids, logits_to_keep: for the LLM. They are named here because `generate` looks at
                this signature: it counts positions from a left-padded prompt's true start, and asks for the logits of
                the last position only, if forward names them.
            kwargs: passed on to the LLM (cache, …); `num_items_in_batch` divides the loss (gradient accumulation).

        Returns:
            the LLM's output. With labels, `logits` holds only the positions that predict one, (num_labels, V):
            the head is the widest layer of a small LLM and most of a prompt needs no prediction.

        Raises:
            ValueError: if the number of audio tokens in a prompt is not that of its audio.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            if encoder_frames is None and input_features is not None:
                encoder_frames, encoder_frames_mask = self.encode(
                    input_features, input_features_mask, sound_features, sound_features_mask
                )
            inputs_embeds = self._embed(input_ids, encoder_frames, encoder_frames_mask, kwargs.get("cache"))

        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        kwargs |= {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        if labels is None:
            return self.language_model(logits_to_keep=logits_to_keep, **kwargs)
        next_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        predicts = next_labels != -100
        outputs = self.language_model(logits_to_keep=predicts, **kwargs)
        targets = next_labels[predicts]
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = nn.functional.cross_entropy(outputs.logits.float(), targets, reduction=reduction)
        outputs.loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return outputs

    def _embed(self, input_ids: Tensor, frames: Tensor | None, frames_mask: Tensor | None, cache: Any) -> Tensor:
        """Embed prompts (B, L) with the audio of `frames` (B, T, D) in place → (B, L, D_llm)."""
        embeds = cast(Tensor, self.get_input_embeddings()(input_ids))
        if frames is None:
            # With a cache the audio is in it already; tokens that another model drafted may then look like audio.
            if _is_empty(cache) and bool((input_ids == self.config.audio_token_id).any()):
                raise ValueError("the prompts hold audio tokens but no audio is given; pass `input_features` with them")
            return embeds
        if frames_mask is None:
            frames_mask = frames.new_ones(frames.shape[:2], dtype=torch.bool)
        self._check_rows(input_ids, frames_mask)
        return self.place_audio(input_ids, embeds, self.connect(frames, frames_mask))

    def _check_rows(self, input_ids: Tensor, frames_mask: Tensor) -> None:
        """Refuse prompts that agree with the clips in total only: a clip would go on in another row's prompt."""
        held = (input_ids == self.config.audio_token_id).sum(dim=1).tolist()
        given = [self.config.num_audio_tokens(2 * num_frames) for num_frames in frames_mask.sum(dim=1).tolist()]
        if sum(held) == sum(given) and not {*accumulate(held)} <= {0, *accumulate(given)}:
            raise ValueError(
                f"the prompts hold {held} audio tokens but the clips give {given}; give clips and prompts in one order"
            )

    def place_audio(self, input_ids: Tensor, inputs_embeds: Tensor, audio: Tensor) -> Tensor:
        """Put audio embeddings (ΣA, D_llm) in place of the audio tokens' embeddings in (B, L, D_llm).

        Raises:
            ValueError: if the prompts (B, L) hold another number of audio tokens than there are audio embeddings.
        """
        placeholders = input_ids == self.config.audio_token_id
        num_placeholders = int(placeholders.sum())
        if num_placeholders != audio.shape[0]:
            raise ValueError(
                f"the prompts hold {num_placeholders} audio tokens but the audio gives {audio.shape[0]}; "
                "use the processor saved with this model"
            )
        return inputs_embeds.masked_scatter(placeholders[:, :, None], audio.to(inputs_embeds))

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: Any = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Choose what one pass of `generate` sees: the audio goes with the pass that reads the prompt, and no other.

        Text is prepared by the LLM, which may have ways of its own (Mamba takes no mask once it has a state). Where we
        differ from transformers: a model that drafts for another one (assisted generation) hears the audio too, and
        stored `encoder_frames` are inputs like any other.
        """
        audio = {name: kwargs.pop(name) for name in _AUDIO_INPUTS if name in kwargs}
        # The protocol that types generation asks for attributes that transformers' own models lack.
        inputs = cast(Any, self.language_model).prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            cache=cache,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return {**inputs, **audio} if is_first_iteration or _is_empty(cache) else inputs

    def num_parameters_by_part(self) -> dict[str, int]:
        """Count parameters of speech_encoder, connector, language_model (without adapters), lora, and in `total`.

        If there is a sound encoder, `sound_encoder` counts it. Tied weights count once; a weight stored as int8 or in
        4 bits counts as many parameters as it has values.
        """
        sound = () if self.sound_encoder is None else ("sound_encoder",)
        counts = dict.fromkeys(("speech_encoder", *sound, "connector", "language_model", "lora"), 0)
        seen: set[int] = set()
        for name, tensor in [*self.named_parameters(), *self._int8_weights()]:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            counts["lora" if ".lora_" in name else name.partition(".")[0]] += num_values(tensor)
        return {**counts, "total": sum(counts.values())}

    def _int8_weights(self) -> list[tuple[str, Tensor]]:
        return [(name, buffer) for name, buffer in self.state_dict().items() if buffer.dtype == torch.int8]

    def lora_layers(self) -> list[tuple[str, BaseTunerLayer]]:
        """List the LLM's layers that carry adapters, by name."""
        return lora.adapted_layers(self)


def _is_empty(cache: Cache | None) -> bool:
    """Tell whether a pass reads its text from the start: no position lies in the cache yet."""
    if cache is None:
        return True
    if cache.layers and all(cache.is_linear):
        return not cache.has_previous_state()  # Mamba and its like have a state, but no length
    return cache.get_seq_length() == 0
