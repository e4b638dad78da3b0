"""Shapes of connectors: SALMONN's windowed Q-Former, Ultravox's stacked MLP, and the CTC compressor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..recipe import CTCCompressor, StackedMLP, WindowedQFormer
from .configs import FRAME_CONTEXT, MAX_LETTER_GROUPS, NO_PIECES, NUM_LETTERS, NUM_PHONES, SOUND_WIDTH, CTCPieces
from .shapes import Weight, layer_norm, linear

Objective = Literal["answer", "ctc", "letters", "phones", "sound"]
"""What a stage teaches."""


@dataclass(frozen=True)
class QFormerShape:
    """Queries attend to one window of encoder frames at a time.

    Attributes:
        input_width: D, of speech and sound encoder together.
        output_width: D_llm.
        frames_per_window: K.
        queries_per_window: Q.
        tail: what becomes of a last window that is not full.
        width, num_layers, num_heads, ffn_width: of the Q-Former.
    """

    input_width: int
    output_width: int
    frames_per_window: int
    queries_per_window: int
    tail: Literal["pad", "drop"]
    width: int
    num_layers: int
    num_heads: int
    ffn_width: int

    def weights(self) -> list[Weight]:
        """List the tensors; two encoders have a norm each, together as wide as the one here."""
        D = self.width
        listed = [
            *layer_norm("norm", self.input_width),
            Weight("query_tokens", (1, self.queries_per_window, D)),
            *layer_norm("qformer.layernorm", D),
        ]
        for layer in range(self.num_layers):
            for block, keys in (("attention", D), ("crossattention", self.input_width)):
                at = f"qformer.encoder.layer.{layer}.{block}"
                listed += linear(f"{at}.attention.query", D, D)
                listed += linear(f"{at}.attention.key", keys, D)
                listed += linear(f"{at}.attention.value", keys, D)
                listed += linear(f"{at}.output.dense", D, D)
                listed += layer_norm(f"{at}.output.LayerNorm", D)
            at = f"qformer.encoder.layer.{layer}"
            listed += linear(f"{at}.intermediate_query.dense", D, self.ffn_width)
            listed += linear(f"{at}.output_query.dense", self.ffn_width, D)
            listed += layer_norm(f"{at}.output_query.LayerNorm", D)
        return [*listed, *linear("projection", D, self.output_width)]

    def num_windows(self, num_frames: int) -> int:
        """Count the windows W of T encoder frames."""
        if self.tail == "pad":
            return -(-num_frames // self.frames_per_window)
        return max(1, num_frames // self.frames_per_window)

    def num_tokens(self, num_frames: int) -> int:
        """Count the audio tokens A of T encoder frames."""
        return self.num_windows(num_frames) * self.queries_per_window


@dataclass(frozen=True)
class MLPShape:
    """K frames side by side through a gated MLP.

    Attributes:
        input_width: D, of speech and sound encoder together.
        output_width: D_llm.
        frames_per_window: K.
        width: of the MLP before its gate halves it.
    """

    input_width: int
    output_width: int
    frames_per_window: int
    width: int

    def weights(self) -> list[Weight]:
        """List the tensors."""
        stacked = self.input_width * self.frames_per_window
        return [
            Weight("norm_in.weight", (stacked,)),
            *linear("linear_1", stacked, self.width, bias=False),
            Weight("norm_mid.weight", (self.width // 2,)),
            *linear("linear_2", self.width // 2, self.output_width, bias=False),
            Weight("norm_out.weight", (self.output_width,)),
        ]

    def num_windows(self, num_frames: int) -> int:
        """Count the stacks W of T encoder frames."""
        return -(-num_frames // self.frames_per_window)

    def num_tokens(self, num_frames: int) -> int:
        """Count the audio tokens A of T encoder frames."""
        return self.num_windows(num_frames)


@dataclass(frozen=True)
class CTCCompressorShape:
    """A Transformer over every few frames, and embeddings of the pieces it hears; one slot for each K frames.

    Attributes:
        input_width: D, of speech and sound encoder together.
        output_width: D_llm.
        frames_per_window: K, of a slot.
        stride: frames to one step of CTC.
        num_pieces: C, pieces of words that CTC hears.
        width, num_layers, num_heads, ffn_width: of the Transformer.
        names_sounds: whether the slots of sound name what they hear.
        spelling_width: of what knows pieces by their letters; 0 if nothing does.
        num_letter_groups: G, of which the pieces consist.
        letters_width, phones_width: of what hears letters and phones; 0 if nothing does.
    """

    input_width: int
    output_width: int
    frames_per_window: int
    stride: int
    num_pieces: int
    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    names_sounds: bool = False
    spelling_width: int = 0
    num_letter_groups: int = 0
    letters_width: int = 0
    phones_width: int = 0

    def weights(self) -> list[Weight]:
        """List the tensors."""
        D, D_llm = self.width, self.output_width
        listed = [
            *layer_norm("norm_in", self.input_width),
            Weight("conv.weight", (D, self.input_width, 2 * self.stride)),
            Weight("conv.bias", (D,)),
        ]
        for layer in range(self.num_layers):
            listed += _prenorm_layer(f"layers.{layer}", D, self.ffn_width)
        return [
            *listed,
            *layer_norm("norm_out", D),
            *linear("to_llm", D, D_llm),
            *layer_norm("norm_llm", D_llm),
            *linear("blank", D_llm, 1),
            Weight("token_embeddings.weight", (self.num_pieces, D_llm), learns=False),
            *self._speller_weights(),
            *self._frame_weights("letters", self.letters_width, NUM_LETTERS),
            *self._frame_weights("phones", self.phones_width, NUM_PHONES),
            *linear("detail", D, D_llm, bias=False),
            *linear("sound_out", SOUND_WIDTH if self.names_sounds else D, D_llm),
            *self._sound_weights(),
        ]

    def teaches(self, objective: Objective, weight: Weight) -> bool:
        """Tell whether a stage with this objective teaches a weight, as the built one's `let_learn` decides it."""
        module = weight.name.partition(".")[0]
        for_llm = {"detail", "sound_out", "sound_in", "norm_sound"}
        match objective:
            case "answer":
                return weight.learns and module in for_llm
            case "ctc":
                return weight.learns and module not in {*for_llm, "namer"}
            case "letters" | "phones":
                return module == objective
            case "sound":
                return module == "namer"

    def _speller_weights(self) -> list[Weight]:
        if not self.spelling_width:
            return []
        return [
            *linear("speller.to_letters", self.width, self.spelling_width, bias=False),
            Weight("speller.groups.weight", (1 + self.num_letter_groups, self.spelling_width)),
            Weight("speller.spelling", (self.num_pieces, MAX_LETTER_GROUPS), is_buffer=True),
        ]

    def _frame_weights(self, name: str, width: int, num_symbols: int) -> list[Weight]:
        if not width:
            return []
        return [
            *layer_norm(f"{name}.norm_in", self.input_width),
            Weight(f"{name}.conv.weight", (width, self.input_width, FRAME_CONTEXT)),
            Weight(f"{name}.conv.bias", (width,)),
            *_prenorm_layer(f"{name}.layer", width, 4 * width),
            *layer_norm(f"{name}.norm_out", width),
            *linear(f"{name}.out", width, num_symbols),
        ]

    def _sound_weights(self) -> list[Weight]:
        if not self.names_sounds:
            return [
                *linear("sound_in", self.input_width, self.width),
                Weight("norm_sound.weight", (self.output_width,)),
            ]
        return [
            *layer_norm("namer.norm_in", self.input_width),
            *linear("namer.pool", 3 * self.input_width, SOUND_WIDTH),
            *linear("namer.to_llm", SOUND_WIDTH, self.output_width),
            *layer_norm("namer.norm_llm", self.output_width),
        ]

    def num_steps(self, num_frames: int) -> int:
        """Count the steps S of CTC in T encoder frames."""
        return -(-num_frames // self.stride)

    def num_windows(self, num_frames: int) -> int:
        """Count the slots of T encoder frames."""
        return -(-num_frames // self.frames_per_window)

    def num_tokens(self, num_frames: int) -> int:
        """Count the audio tokens A of T encoder frames: one a slot, whatever is said."""
        return self.num_windows(num_frames)


def _prenorm_layer(at: str, width: int, ffn_width: int) -> list[Weight]:
    return [
        *layer_norm(f"{at}.norm_1", width),
        *linear(f"{at}.qkv", width, 3 * width),
        *linear(f"{at}.out", width, width),
        *layer_norm(f"{at}.norm_2", width),
        *linear(f"{at}.up", width, ffn_width),
        *linear(f"{at}.down", ffn_width, width),
    ]


ConnectorShape = QFormerShape | MLPShape | CTCCompressorShape


def read_connector(
    section: WindowedQFormer | StackedMLP | CTCCompressor,
    input_width: int,
    output_width: int,
    pieces: CTCPieces = NO_PIECES,
) -> ConnectorShape:
    """Build the shape of a recipe's connector between encoders and LLM of these widths.

    Args:
        section: the recipe's.
        input_width: D, of speech and sound encoder together.
        output_width: D_llm.
        pieces: what a `ctc_compressor` hears; see `count_ctc_pieces`.
    """
    match section:
        case WindowedQFormer():
            return QFormerShape(
                input_width=input_width,
                output_width=output_width,
                frames_per_window=section.frames_per_window,
                queries_per_window=section.queries_per_window,
                tail=section.tail,
                width=section.hidden_size,
                num_layers=section.num_layers,
                num_heads=section.num_heads,
                ffn_width=section.intermediate_size,
            )
        case StackedMLP():
            return MLPShape(input_width, output_width, section.stack, section.hidden_size)
        case CTCCompressor():
            return CTCCompressorShape(
                input_width=input_width,
                output_width=output_width,
                frames_per_window=section.frames_per_slot,
                stride=section.stride,
                num_pieces=pieces.num_pieces,
                width=section.hidden_size,
                num_layers=section.num_layers,
                num_heads=section.num_heads,
                ffn_width=section.intermediate_size,
                names_sounds=section.sound_layer is not None,
                spelling_width=section.spelling,
                num_letter_groups=pieces.num_letter_groups,
                letters_width=section.letters,
                phones_width=section.phones,
            )
