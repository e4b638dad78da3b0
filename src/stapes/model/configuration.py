"""What an audio language model consists of, and the one formula for its number of audio tokens."""

# No `from __future__ import annotations`: it would turn types into texts, which `strict` does not check.

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

BLOCK_FEATURE_FRAMES = 3000
"""Whisper's position table ends at 30 s: 3000 feature frames at 100 Hz. Longer clips are encoded block by block."""

FEATURE_FRAMES_PER_ENCODER_FRAME = 2
"""Whisper's second convolution has stride 2: 100 Hz features become 50 Hz encoder frames."""


def num_encoder_frames(num_feature_frames: int) -> int:
    """Count the encoder frames T of `num_feature_frames` F: ceil(F / 2), blocks of 30 s included (3000 is even)."""
    return -(-num_feature_frames // FEATURE_FRAMES_PER_ENCODER_FRAME)


def num_audio_tokens(
    num_feature_frames: int, frames_per_window: int, queries_per_window: int, tail: Literal["pad", "drop"]
) -> int:
    """Count the audio tokens A of a clip; processor, model and connectors all ask here.

    Args:
        num_feature_frames: F, log-mel frames at 100 Hz.
        frames_per_window: K, encoder frames (50 Hz) pooled together.
        queries_per_window: Q, tokens each window becomes.
        tail: `pad` keeps an incomplete last window, `drop` discards it (SALMONN); a clip shorter than one window
            is always padded to one, so that no audio becomes no token.

    Returns:
        ceil(T / K) * Q or max(1, floor(T / K)) * Q. 30 s with K=17, Q=1 gives 89, dropped tail 88.
    """
    num_frames = num_encoder_frames(num_feature_frames)
    windows = -(-num_frames // frames_per_window) if tail == "pad" else max(1, num_frames // frames_per_window)
    return windows * queries_per_window


@strict
class ConnectorConfig(PreTrainedConfig):
    """The part between speech encoder and LLM.

    Attributes:
        kind: `windowed_qformer` (SALMONN), `stacked_mlp` (Ultravox) or `ctc_compressor`.
        frames_per_window: K, encoder frames that become one window (Q-Former), one stack (MLP), or for which there is
            one slot (CTC compressor).
        queries_per_window: Q, audio tokens per window; 1 but for the Q-Former.
        tail: what happens to a last window that is not full: `pad` or `drop`.
        hidden_size: width of the Q-Former or the CTC compressor, or of the MLP before its gate halves it.
        num_hidden_layers, num_attention_heads, intermediate_size, dropout: of Q-Former and CTC compressor.
        ctc_stride: encoder frames per step of CTC.
        ctc_merges: how many of the LLM's BPE merges make the pieces of words that CTC hears.
        ctc_sharpness: by how much CTC's logits are multiplied before they weight what the LLM reads: with 1 it reads
            means of all that may have been said, with 6 nearly always what was heard best.
        ctc_spelling: width of the part of CTC's output layer that knows pieces by their letters, see `Speller`; 0:
            there is none.
        ctc_letters, ctc_phones: widths of the parts that hear letters and phones, see `FrameHearer`; 0: there is none.
        ctc_weight: how much CTC has to say in a transcript beside the LLM, from 0, nothing, to 1: token by token, see
            `CTCGuide`, or, where it hears letters or phones and words are known, of whole texts, see
            `TranscriptChooser`.
        sound_layer: of a CTC compressor, the speech encoder's layer (from 1) that its sound slots see, to name what
            sounds, see `SoundNamer`; None: they see the last layer and name nothing.
        num_ctc_tokens: how many pieces these are, see `CTCVocabulary`; `assembly.build` fills it in.
        num_letter_groups: of how many groups of letters they consist, see `letter_groups`; filled in likewise.
    """

    model_type = "stapes_connector"

    kind: Literal["windowed_qformer", "stacked_mlp", "ctc_compressor"] = "windowed_qformer"
    frames_per_window: int = 17
    queries_per_window: int = 1
    tail: Literal["pad", "drop"] = "pad"
    hidden_size: int = 768
    num_hidden_layers: int = 2
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    dropout: float | int = 0.1
    ctc_stride: int = 4
    ctc_merges: int = 12000
    ctc_sharpness: float | int = 1.0
    ctc_spelling: int = 0
    ctc_letters: int = 0
    ctc_phones: int = 0
    ctc_weight: float | int = 0.0
    sound_layer: int | None = None
    num_ctc_tokens: int = 1
    num_letter_groups: int = 1

    def validate_shape(self) -> None:
        """Refuse what no connector can be; `strict` calls this after construction.

        Raises:
            ValueError: naming the setting.
        """
        for name in ("frames_per_window", "queries_per_window", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")
        if self.kind != "windowed_qformer" and self.queries_per_window != 1:
            raise ValueError(f"queries_per_window is {self.queries_per_window}; a {self.kind} makes 1 token per window")
        if self.kind == "stacked_mlp" and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}; the gate of a stacked_mlp needs an even one")
        if self.sound_layer is not None and (self.kind != "ctc_compressor" or self.sound_layer < 1):
            raise ValueError(f"sound_layer is {self.sound_layer}; a ctc_compressor may have one, from 1 on")
        for name in ("ctc_letters", "ctc_phones"):
            width = getattr(self, name)
            if width % 64 or not 0 <= width <= 4096 * (self.kind == "ctc_compressor"):
                raise ValueError(f"{name} is {width}; a ctc_compressor may have a width, a multiple of 64 up to 4096")
        if not 0 <= self.ctc_weight <= (self.kind == "ctc_compressor"):
            raise ValueError(f"ctc_weight is {self.ctc_weight}; a ctc_compressor may have one, from 0 to 1")
        if self.kind == "ctc_compressor":
            if self.ctc_stride % 2 or not 0 < self.ctc_stride <= self.frames_per_window:
                raise ValueError(
                    f"ctc_stride is {self.ctc_stride}; wanted an even number up to frames_per_window "
                    f"({self.frames_per_window})"
                )
            if self.ctc_sharpness <= 0:
                raise ValueError(f"ctc_sharpness is {self.ctc_sharpness}; wanted a number above 0")
            if self.ctc_spelling < 0:
                raise ValueError(f"ctc_spelling is {self.ctc_spelling}; wanted a width, or 0 for none")
            if self.tail != "pad":
                raise ValueError(f"tail is {self.tail!r}; a ctc_compressor keeps every frame: `pad`")
        if self.kind != "stacked_mlp" and self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide by {self.num_attention_heads} heads")


@strict
class StapesConfig(PreTrainedConfig):
    """Configuration of `StapesForConditionalGeneration`.

    Attributes:
        speech_config: a `WhisperConfig`; only the encoder part is built.
        text_config: the configuration of any causal LM of transformers.
        sound_config: of a second encoder beside the speech encoder, a `BeatsConfig` or an `EatConfig`; None for none.
        connector_config: see `ConnectorConfig`.
        audio_token_id: an id the LLM's vocabulary already has and text never uses; audio embeddings take its place.
        lora: peft's `LoraConfig` as a dict while adapters sit in the LLM, None without or after merging.
        int8: `{"skip": [module names]}` when Linear layers are stored as int8, else None.
        quantization_config: there while Linear layers of the LLM are in 4 bits, as transformers reads it; see `nf4`.
        sources: the names (Hub ids or folders) the weights came from, `{"speech_encoder": …, "llm": …}`,
            and `sound_encoder` if there is one.
        trained_parts: the parts whose weights are no longer those of `sources`.
        trained_speech_layers: of a trained speech encoder, how many of its last layers are, with the norm after them;
            None for all of it.
    """

    model_type = "stapes"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "speech_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "connector_config": ConnectorConfig,
        "sound_config": SubConfigSpec(config_class=AutoConfig, model_type="stapes_beats", optional=True),
    }

    # A dict or a config object may be given; after construction each is a config object.
    speech_config: Any = None
    text_config: Any = None
    connector_config: Any = None
    sound_config: Any = None
    audio_token_id: int = 0
    lora: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None
    sources: dict[str, str] | None = None
    trained_parts: list[str] | None = None
    trained_speech_layers: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False  # whether head and embeddings are one is the LLM's business: see text_config

    def note_merged(self) -> None:
        """Note that the adapters are in the LLM's own weights from now on."""
        self.lora = None
        self.trained_parts = sorted({*(self.trained_parts or ()), "language_model"} - {"lora"})

    def num_audio_tokens(self, num_feature_frames: int) -> int:
        """Count the audio tokens of a clip of `num_feature_frames` log-mel frames (100 Hz)."""
        connector = self.connector_config
        return num_audio_tokens(
            num_feature_frames, connector.frames_per_window, connector.queries_per_window, connector.tail
        )
