"""Peak memory of our own model: work that follows the clip's length, no attention scores, logits of one position.

The replay takes and drops what `stapes.model` allocates. On a GPU blocks are those of the CUDA allocator; on a CPU
tensors take what they hold. Weights kept in 4 bits are widened one linear at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from .allocator import Block, Memory, Peak
from .connector import CTCCompressorShape, QFormerShape
from .encoders import BeatsShape
from .model_plan import PARTS, ModelPlan, Part
from .shapes import DTYPE_BYTES, DType, Weight, stored_bytes

_ACTIVATIONS = "activations"
_BLOCK_FRAMES = 1500
"""Longer clips are encoded in blocks of 30 s."""


@dataclass(frozen=True)
class Workload:
    """What one answer is made of: batch 1.

    Attributes:
        audio_s: length of the clip.
        text_tokens: tokens of the prompt that are not audio.
        new_tokens: tokens of the answer.
    """

    audio_s: float
    text_tokens: int
    new_tokens: int


def stored_sizes(plan: ModelPlan, part: Part, weight: Weight, dtype: DType) -> list[int]:
    """List the bytes of the buffers that keep one weight of our model."""
    if plan.is_int8(part, weight):
        return [weight.size, weight.shape[0] * 4]
    return stored_bytes(weight, dtype, plan.quantization if part == "language_model" else None)


def weight_bytes(plan: ModelPlan, dtype: DType, llm_dtype: DType | None = None) -> dict[str, int]:
    """Sum the bytes of each part's weights; `llm_dtype` is that of the LLM where it differs."""
    dtypes: dict[Part, DType] = {"language_model": llm_dtype or dtype}
    return {
        part: sum(sum(stored_sizes(plan, part, weight, dtypes.get(part, dtype))) for weight in weights)
        for part, weights in plan.without_dropped().weights().items()
    }


def replay_gpu(plan: ModelPlan, work: Workload, dtype: DType, workspace_bytes: int) -> tuple[Peak, int, int]:
    """Predict peak bytes on a GPU.

    Returns:
        the peak, that of loading alone, that of running alone.
    """
    replay = _Replay(plan, work, dtype, Memory(rounds=True))
    replay.load()
    replay.memory.phase = "run"
    replay.memory.take(workspace_bytes, "workspace")
    replay.answer()
    phases = replay.memory.peaks_by_phase
    run_peak = max(size for phase, size in phases.items() if phase.startswith("run"))
    return replay.memory.peak, phases["load: weights"], run_peak


def activation_peak(plan: ModelPlan, work: Workload, dtype: DType) -> Peak:
    """Predict the most bytes that inputs, activations and cache take at any moment, weights apart."""
    replay = _Replay(plan, work, dtype, Memory(rounds=False))
    replay.answer()
    return replay.memory.peak


class _Replay:
    """The allocations of loading a model and answering once."""

    def __init__(self, plan: ModelPlan, work: Workload, dtype: DType, memory: Memory) -> None:
        self.plan = plan.without_dropped()
        self.loaded = plan
        self.work = work
        self.dtype: DType = dtype
        self.value_bytes = DTYPE_BYTES[dtype]
        self.memory = memory

    def load(self) -> None:
        """Put the weights on the device, those that are quantised there in fp16, then take out the dropped layers."""
        self.memory.phase = "load: weights"
        order: tuple[Part, ...] = ("speech_encoder", "sound_encoder", "language_model", "lora", "connector")
        assert set(order) == set(PARTS)
        weights = self.loaded.weights()
        dropped: list[Block] = []
        for part in order:
            for weight in weights[part]:
                blocks = self._load_weight(part, weight)
                dropped += blocks if self.loaded.drops(part, weight) else []
        self.memory.drop(*dropped)

    def _load_weight(self, part: Part, weight: Weight) -> list[Block]:
        sizes = stored_sizes(self.loaded, part, weight, self.dtype)
        quantization = self.loaded.quantization
        copies: list[Block] = []
        if len(sizes) > 2 and quantization is not None and not quantization.is_stored:
            scales = ceil(weight.size / quantization.group_size)
            copies = [self.memory.take(size, "load copies") for size in (weight.size * 2, scales * 4)]
        blocks = [self.memory.take(size, part) for size in sizes]
        self.memory.drop(*copies)
        return blocks

    def answer(self) -> None:
        """Encode, connect, prefill, and generate."""
        plan = self.plan
        self.memory.phase = "run: encoder"
        frames = plan.num_feature_frames(self.work.audio_s)
        features = self.memory.take(frames * plan.speech.num_mels * 4, "inputs")
        encoded = self._encode(frames)
        sound = self._encode_sound() if plan.sound else None
        self.memory.phase = "run: connector"
        audio = self._connect(plan.num_frames(self.work.audio_s))
        self.memory.drop(encoded, *([sound] if sound else []))
        self.memory.phase = "run: prefill"
        self._generate(plan.num_audio_tokens(self.work.audio_s) + self.work.text_tokens)
        self.memory.drop(audio, features)

    def _take(self, *shape: int) -> Block:
        num_bytes = self.value_bytes
        for length in shape:
            num_bytes *= length
        return self.memory.take(num_bytes, _ACTIVATIONS)

    def _encode(self, num_feature_frames: int) -> Block:
        shape, drop = self.plan.speech, self.memory.drop
        D = shape.width
        output = self._take(-(-num_feature_frames // 2), D)
        F = min(num_feature_frames, 2 * _BLOCK_FRAMES)
        T = -(-F // 2)
        cast = self._take(F, shape.num_mels)
        masked = self._take(F, shape.num_mels)
        first = [self._take(F, D) for _ in range(3)]  # convolved, activated, masked
        drop(cast, masked, *first[:2])
        second = [self._take(T, D) for _ in range(2)]
        drop(first[2])
        hidden = self._take(T, D)
        drop(*second)
        for _ in range(shape.num_layers):
            hidden = self._transformer_layer(hidden, T, D, shape.ffn_width)
        normed = self._take(T, D)
        drop(hidden, normed)
        return output

    def _transformer_layer(self, hidden: Block, T: int, D: int, ffn_width: int) -> Block:
        drop = self.memory.drop
        normed = self._take(T, D)
        states = [self._take(T, D) for _ in range(3)]
        mixed = self._take(T, D)
        drop(*states)
        projected = self._take(T, D)
        drop(mixed, normed)
        middle = self._take(T, D)
        drop(projected)
        normed = self._take(T, D)
        wide = [self._take(T, ffn_width) for _ in range(2)]
        drop(wide[0], normed)
        narrow = self._take(T, D)
        drop(wide[1])
        result = self._take(T, D)
        drop(narrow, middle, hidden)
        return result

    def _encode_sound(self) -> Block:
        sound, drop = self.plan.sound, self.memory.drop
        assert sound is not None
        num_tokens, D = sound.num_tokens(self.work.audio_s), sound.width
        output = self._take(num_tokens, D)
        T = min(num_tokens, sound.block_tokens)
        hidden = self._take(T, D)
        kept = []
        if isinstance(sound, BeatsShape):
            width, group, kernel = sound.conv_shape
            made = [self._take(width, group, kernel), self._take(T, D)]
            drop(*made)
            # The gated position bias is a mask of its own in each layer, made from one for all.
            kept = [self._take(sound.num_heads, T, T) for _ in range(2)]
        for _ in range(sound.num_layers):
            hidden = self._transformer_layer(hidden, T, D, sound.ffn_width)
        drop(*kept)
        drop(hidden, self._take(T, D))  # masked
        return output

    def _connect(self, num_frames: int) -> Block:
        connector, drop = self.plan.connector, self.memory.drop
        if isinstance(connector, CTCCompressorShape):
            return self._compress(connector, num_frames)
        W, K = connector.num_windows(num_frames), connector.frames_per_window
        A = connector.num_tokens(num_frames)
        frames = [self._take(num_frames, connector.input_width) for _ in range(2)]  # normed, masked
        windows = self._take(W * K, connector.input_width)
        if isinstance(connector, QFormerShape):
            keys = [self._take(W * K, connector.width) for _ in range(2)]
            wide = [self._take(A, connector.ffn_width) for _ in range(2)]
            drop(*keys, *wide)
        else:
            normed = self._take(W * K, connector.input_width)
            drop(normed, self._take(W, connector.width))
        drop(*frames, windows)
        return self._take(A, connector.output_width)

    def _compress(self, connector: CTCCompressorShape, T: int) -> Block:
        drop, D, D_llm, C = self.memory.drop, connector.width, connector.output_width, connector.num_pieces
        S, A = connector.num_steps(T), connector.num_tokens(T)
        frames = [self._take(T, connector.input_width) for _ in range(3)]  # normed, masked, channels first
        convolved = [self._take(S, D) for _ in range(2)]
        hidden = self._take(S, D)
        drop(*frames, *convolved)
        for _ in range(connector.num_layers):
            hidden = self._transformer_layer(hidden, S, D, connector.ffn_width)
        normed = self._take(S, D)
        drop(hidden)
        drop(*[self._take(S, D_llm) for _ in range(2)])
        if connector.spelling_width:
            self._take(C, connector.spelling_width)  # kept from call to call
        logits = [self._take(S, 1 + C) for _ in range(2)]  # and what makes them, or their softmax
        to_speech = [self._take(A, S) for _ in range(2)]
        probabilities = self._take(S, C)
        steps = [self._take(S, D_llm) for _ in range(3)]
        speech = self._take(A, D_llm)
        drop(*steps, probabilities)
        to_sound = [self._take(A, T) for _ in range(2)]
        frames = [self._take(T, connector.input_width), self._take(A, connector.input_width)]
        sound = [self._take(A, D) for _ in range(2)] + [self._take(A, D_llm) for _ in range(2)]
        output = self._take(A, D_llm)
        drop(normed, *logits, *to_speech, speech, *to_sound, *frames, *sound)
        return output

    def _generate(self, L: int) -> None:
        llm, drop = self.plan.llm, self.memory.drop
        prompt = [self._take(L, llm.width) for _ in range(2)]  # embedded, with audio placed
        cache = self.memory.take(llm.kv_cache_bytes(L + self.work.new_tokens, self.value_bytes), "kv_cache")
        width = llm.ffn_width * max(1, llm.experts_per_token) + llm.shared_ffn_width
        for _ in range(llm.num_layers):
            hidden = [self._take(L, llm.width) for _ in range(2)]
            attended = self._linear(L, llm.width, llm.query_width + 2 * llm.kv_width)
            mixed = self._take(L, llm.query_width)
            drop(attended, self._linear(L, llm.query_width, llm.width), mixed)
            gate, up = self._linear(L, llm.width, width), self._linear(L, llm.width, width)
            product = self._take(L, width)
            drop(gate, up, self._linear(L, width, llm.width), product, *hidden)
        logits = [self._take(1, llm.vocab_size) for _ in range(2)]
        drop(*logits, cache, *prompt)

    def _linear(self, rows: int, inputs: int, outputs: int) -> Block:
        is_narrow = self.plan.quantization is not None or (self.plan.int8_skip is not None and self.memory.rounds)
        widened = [self._take(inputs, outputs)] if is_narrow else []
        result = self._take(rows, outputs)
        self.memory.drop(*widened)
        return result
