"""What an answer takes: the operations of each part, their floating-point operations and the bytes they move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .configs import SOUND_WIDTH
from .connector import CTCCompressorShape, MLPShape, QFormerShape
from .encoders import BeatsShape
from .model_plan import ModelPlan, Part
from .own import Workload
from .shapes import DTYPE_BYTES, DType, Quantization

Storage = Literal["float", "int8", "4-bit"]
PointwiseKind = Literal["norm", "rms_norm", "gelu", "gated", "add"]
LayerKind = Literal["encoder", "decoder", "step", "qformer", "adapter"]
StageName = Literal["encoder", "connector", "prefill", "per_token"]


@dataclass(frozen=True)
class Linear:
    """`times` products of (rows, inputs) with a weight (outputs, inputs)."""

    rows: int
    inputs: int
    outputs: int
    times: int = 1
    storage: Storage = "float"


@dataclass(frozen=True)
class Attention:
    """`times` attentions of (queries) over (keys), in `heads` heads of `head_width`.

    Several heads may share keys and values: of those there are `kv_heads`, as many as `heads` unless given.
    """

    queries: int
    keys: int
    heads: int
    head_width: int
    times: int = 1
    kv_heads: int | None = None


@dataclass(frozen=True)
class Pointwise:
    """`times` passes of one kind over `elements` values."""

    kind: PointwiseKind
    elements: int
    times: int = 1


Op = Linear | Attention | Pointwise


@dataclass(frozen=True)
class Stage:
    """One timed part of an answer.

    Attributes:
        name: `encoder`, `connector`, `prefill` or `per_token` (one cached step), as in bench.json.
        ops: what is computed.
        layers: layers of each kind that are called, each of which costs time of its own however small; the LLM's are
            `decoder` in the prefill and `step` in a cached step.
    """

    name: StageName
    ops: tuple[Op, ...]
    layers: tuple[tuple[LayerKind, int], ...]

    def flops(self) -> int:
        """Count floating-point operations: 2 a multiplication with addition, 1 a pointwise value."""
        return sum(_flops(op) for op in self.ops)

    def moved_bytes(self, dtype: DType, quantization: Quantization | None) -> int:
        """Count bytes read and written: weights once, inputs and outputs of each operation once."""
        return sum(_moved_bytes(op, DTYPE_BYTES[dtype], quantization) for op in self.ops)


def plan_stages(plan: ModelPlan, work: Workload) -> list[Stage]:
    """List what is computed for one answer, part by part."""
    plan = plan.without_dropped()
    audio_tokens = plan.num_audio_tokens(work.audio_s)
    length = audio_tokens + work.text_tokens
    encoder_layers = plan.speech.num_layers + (plan.sound.num_layers if plan.sound else 0)
    connector = plan.connector
    layers: tuple[LayerKind, int] = ("qformer", connector.num_layers if isinstance(connector, QFormerShape) else 0)
    if isinstance(connector, CTCCompressorShape):
        layers = ("encoder", connector.num_layers)
    context = length + (work.new_tokens + 1) // 2  # a step half way through the answer
    adapters = len(plan.weights()["lora"]) // 2
    return [
        Stage("encoder", tuple(_encoder(plan, work.audio_s)), (("encoder", encoder_layers),)),
        Stage("connector", tuple(_connector(plan, work.audio_s)), (layers,)),
        Stage("prefill", tuple(_llm(plan, length, length)), (("decoder", plan.llm.num_layers), ("adapter", adapters))),
        Stage("per_token", tuple(_llm(plan, 1, context)), (("step", plan.llm.num_layers), ("adapter", adapters))),
    ]


def _storage(plan: ModelPlan, part: Part) -> Storage:
    """Tell how the linears of a part are stored; of one that is quantised in part, how its first is."""
    first = next(weight for weight in plan.weights()[part] if weight.kind == "linear")
    if plan.is_int8(part, first):
        return "int8"
    return "4-bit" if part == "language_model" and plan.quantization is not None else "float"


def _encoder(plan: ModelPlan, audio_s: float) -> Iterable[Op]:
    shape = plan.speech
    storage = _storage(plan, "speech_encoder")
    frames = -(-plan.num_feature_frames(audio_s) // 2)
    yield Linear(2 * frames, 3 * shape.num_mels, shape.width)
    yield Pointwise("gelu", 2 * frames * shape.width)
    yield Linear(frames, 3 * shape.width, shape.width)
    yield Pointwise("gelu", frames * shape.width)
    for count, length in _blocks(frames, shape.num_positions):
        yield from _layers(length, shape.width, shape.num_heads, shape.ffn_width, count * shape.num_layers, storage)
    sound = plan.sound
    if sound is not None:
        tokens = sound.num_tokens(audio_s)
        yield Linear(tokens, 256, sound.patch_width if isinstance(sound, BeatsShape) else sound.width)
        if isinstance(sound, BeatsShape):
            width, group, kernel = sound.conv_shape
            yield Linear(tokens, sound.patch_width, sound.width)
            yield Linear(tokens, group * kernel, width)
        storage = _storage(plan, "sound_encoder")
        for count, length in _blocks(tokens, sound.block_tokens):
            yield from _layers(length, sound.width, sound.num_heads, sound.ffn_width, count * sound.num_layers, storage)


def _blocks(num_frames: int, longest: int) -> list[tuple[int, int]]:
    """Cut a clip's frames into blocks that do not attend to each other: how many, of which length."""
    whole, rest = divmod(num_frames, longest)
    return [(count, length) for count, length in ((whole, longest), (1, rest)) if count and length]


def _layers(T: int, D: int, heads: int, ffn_width: int, times: int, storage: Storage) -> Iterable[Op]:
    """The operations of `times` transformer layers of an encoder over T frames."""
    yield Linear(T, D, D, 4 * times, storage)
    yield Attention(T, T, heads, D // heads, times)
    yield Linear(T, D, ffn_width, times, storage)
    yield Linear(T, ffn_width, D, times, storage)
    yield Pointwise("norm", T * D, 2 * times)
    yield Pointwise("gelu", T * ffn_width, times)
    yield Pointwise("add", T * D, 2 * times)


def _connector(plan: ModelPlan, audio_s: float) -> Iterable[Op]:
    connector = plan.connector
    frames = plan.num_frames(audio_s)
    windows, K = connector.num_windows(frames), connector.frames_per_window
    tokens = connector.num_tokens(frames)
    match connector:
        case QFormerShape():
            D, Q = connector.width, connector.queries_per_window
            yield Pointwise("norm", frames * connector.input_width)
            layers = connector.num_layers
            yield Linear(tokens, D, D, 6 * layers)  # self-attention whole, queries and output of the other
            yield Linear(windows * K, connector.input_width, D, 2 * layers)
            yield Attention(Q, Q, connector.num_heads * windows, D // connector.num_heads, layers)
            yield Attention(Q, K, connector.num_heads * windows, D // connector.num_heads, layers)
            yield Linear(tokens, D, connector.ffn_width, layers)
            yield Linear(tokens, connector.ffn_width, D, layers)
            yield Pointwise("gelu", tokens * connector.ffn_width, layers)
            yield Pointwise("norm", tokens * D, 3 * layers)
            yield Linear(tokens, D, connector.output_width)
        case MLPShape():
            stacked = connector.input_width * K
            yield Pointwise("rms_norm", windows * stacked)
            yield Linear(windows, stacked, connector.width)
            yield Pointwise("gated", windows * connector.width // 2)
            yield Linear(windows, connector.width // 2, connector.output_width)
        case CTCCompressorShape():
            yield from _ctc_compressor(connector, frames)


def _ctc_compressor(connector: CTCCompressorShape, T: int) -> Iterable[Op]:
    """The operations of a ctc_compressor over T frames; speech and sound of all slots, whatever is heard."""
    D, E, D_llm = connector.width, connector.input_width, connector.output_width
    S, A, C = connector.num_steps(T), connector.num_tokens(T), connector.num_pieces
    yield Pointwise("norm", T * E, 2)
    yield Linear(S, E * 2 * connector.stride, D)
    yield Pointwise("gelu", S * D)
    yield from _layers(S, D, connector.num_heads, connector.ffn_width, connector.num_layers, "float")
    yield Pointwise("norm", S * D)
    yield Linear(S, D, D_llm)
    yield Pointwise("norm", S * D_llm)
    yield Linear(S, D_llm, 1)
    yield Linear(S, D_llm, C)
    if width := connector.spelling_width:
        yield Linear(S, D, width)
        yield Linear(S, width, C)
    yield Pointwise("norm", S * (1 + C), 2)  # softmax of the pieces, and with the blank
    yield Linear(S, C, D_llm)
    yield Linear(S, D, D_llm)
    yield Linear(A, S, D_llm)  # steps to slots
    yield Linear(A, T, E)  # frames to slots
    if not connector.names_sounds:
        yield Linear(A, E, D)
        yield Pointwise("gated", A * D)
        yield Linear(A, D, D_llm)
        yield Pointwise("rms_norm", A * D_llm)
        return
    yield Pointwise("norm", T * E, 3)  # of the sound layer; mean and deviation over the clip
    yield Linear(A, 3 * E, SOUND_WIDTH)
    yield Pointwise("gated", A * SOUND_WIDTH)
    yield Linear(A, SOUND_WIDTH, D_llm, 2)
    yield Pointwise("norm", A * D_llm)
    yield Linear(A, D_llm, C)
    yield Pointwise("norm", A * C)
    yield Linear(A, C, D_llm)


def _llm(plan: ModelPlan, rows: int, context: int) -> Iterable[Op]:
    """The operations of `rows` new positions that attend to `context` positions; logits of the last one."""
    llm = plan.llm
    storage = _storage(plan, "language_model")
    times = llm.num_layers
    yield Linear(rows, llm.width, llm.query_width, times, storage)
    yield Linear(rows, llm.width, llm.kv_width, 2 * times, storage)
    yield Attention(rows, context, llm.num_heads, llm.head_width, times, llm.num_kv_heads)
    yield Linear(rows, llm.query_width, llm.width, times, storage)
    yield from _mlp(plan, rows, storage)
    yield Pointwise("rms_norm", rows * llm.width, llm.family.num_norms * times)
    yield Pointwise("add", rows * llm.width, 2 * times)
    adapters = plan.adapters
    if adapters is not None:
        for weight in llm.weights():  # names may tell layers apart
            if weight.kind == "linear" and adapters.fits(weight):
                outputs, inputs = weight.shape
                yield Linear(rows, inputs, adapters.rank)
                yield Linear(rows, adapters.rank, outputs)
                yield Pointwise("add", rows * outputs, 2)
    head = next(weight for weight in llm.weights() if weight.kind == ("embedding" if llm.tied else "head"))
    is_int8 = plan.is_int8("language_model", head)
    yield Linear(1, llm.width, llm.vocab_size, 1, "int8" if is_int8 else "float")


def _mlp(plan: ModelPlan, rows: int, storage: Storage) -> Iterable[Op]:
    llm, times = plan.llm, plan.llm.num_layers
    if not llm.num_experts:
        yield Linear(rows, llm.width, llm.ffn_width, 2 * times, storage)
        yield Linear(rows, llm.ffn_width, llm.width, times, storage)
        yield Pointwise("gated", rows * llm.ffn_width, times)
        return
    # Rows spread over the experts: each that is met is read once and sees its share of them.
    met = min(llm.num_experts, rows * llm.experts_per_token)
    share = -(-rows * llm.experts_per_token // met)
    yield Linear(rows, llm.width, llm.num_experts, times)
    yield Linear(share, llm.width, llm.ffn_width, 2 * met * times)
    yield Linear(share, llm.ffn_width, llm.width, met * times)
    yield Pointwise("gated", share * llm.ffn_width, met * times)
    if llm.shared_ffn_width:
        yield Linear(rows, llm.width, llm.shared_ffn_width, 2 * times, storage)
        yield Linear(rows, llm.shared_ffn_width, llm.width, times, storage)


def _flops(op: Op) -> int:
    match op:
        case Linear():
            return 2 * op.rows * op.inputs * op.outputs * op.times
        case Attention():
            return 4 * op.queries * op.keys * op.heads * op.head_width * op.times
        case Pointwise():
            return op.elements * op.times


def _moved_bytes(op: Op, value_bytes: int, quantization: Quantization | None) -> int:
    match op:
        case Linear():
            weight_bits = {"float": 8 * value_bytes, "int8": 8, "4-bit": quantization.bits if quantization else 4}
            weight = op.inputs * op.outputs * weight_bits[op.storage] // 8
            return (weight + op.rows * (op.inputs + op.outputs) * value_bytes) * op.times
        case Attention():
            # Queries and what comes out; keys and values.
            rows = 2 * op.queries * op.heads + 2 * op.keys * (op.kv_heads or op.heads)
            return rows * op.head_width * value_bytes * op.times
        case Pointwise():
            return 2 * op.elements * value_bytes * op.times
