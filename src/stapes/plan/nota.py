"""Peak memory of the published implementation, under its published protocol.

What is replayed, tensor by tensor, is nota-github/audiolm-evaluator's `evaluate_efficiency_salmonn.py` on
audiolm-trainer's SALMONN with the versions it pins (torch 2.5.1, transformers 4.47.1, bitsandbytes 0.45.0, peft 0.3.0):
load, move to the GPU, then encode, prompt, one prefill and one cached step, the cache emptied after each round. Its
number is `torch.cuda.max_memory_allocated()` since the process began, so a peak while loading counts.

Encoders, Q-Former, projection and adapters are float32 under fp16 autocast, whose casts of frozen weights are not
kept; Whisper always hears 30 s and its attention is written out (scores and softmax are tensors); the LLM runs without
autocast, in fp16 or with 4-bit linears. The functions below name each term.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from .allocator import Block, Memory, Peak
from .connector import MLPShape, QFormerShape
from .encoders import SAMPLE_RATE_HZ, BeatsShape
from .model_plan import ModelPlan
from .shapes import Weight, stored_bytes

AUDIO_S = 10
ROUNDS = 3
"""The second round differs from the first by what a round leaves behind; those after it do not."""

PROMPT_TOKENS = 26
"""BOS, `USER: <Speech>` and `</Speech> Recognize the speech and give me the transcription.\\nASSISTANT:` in Llama 3's
tokens; other tokenizers differ by a few, which is 0.3 MiB of logits each."""

_HALF, _FULL = 2, 4
_ACTIVATIONS = "activations"


@dataclass(frozen=True)
class NotaMemory:
    """What the protocol would print, and why.

    Attributes:
        peak: of the whole process: the published column.
        load_peak, run_peak: bytes, of loading alone and of running alone.
        activations: the most that inputs, activations and cache take at once, weights and rounding apart.
    """

    peak: Peak
    load_peak: int
    run_peak: int
    activations: int


def predict_nota_memory(plan: ModelPlan, workspace_bytes: int) -> NotaMemory:
    """Predict the published memory figure of a model.

    Args:
        plan: what the model is made of; an int8 variant counts as its float32 self, which the protocol would load.
        workspace_bytes: what cuBLAS takes at its first matrix product (8.125 MiB, on Hopper 32 MiB).
    """
    run = _Replay(plan, workspace_bytes)
    run.load()
    for _ in range(ROUNDS):
        run.encode_connect_answer()
        run.memory.empty_cache()
    phases = run.memory.peaks_by_phase
    return NotaMemory(
        run.memory.peak,
        load_peak=max(size for phase, size in phases.items() if phase.startswith("load")),
        run_peak=max(size for phase, size in phases.items() if phase.startswith("run")),
        activations=_activation_peak(plan),
    )


def _activation_peak(plan: ModelPlan) -> int:
    """Answer once without weights; what BEATs makes of its own in each call (`_run_sound`) is none of it."""
    run = _Replay(plan, 0, rounds=False)
    run.take_inputs()
    run.encode_connect_answer()
    return sum(run.memory.peak.by_part.get(part, 0) for part in ("inputs", _ACTIVATIONS, "kv_cache"))


class _Replay:
    """The allocations of one process, in order."""

    def __init__(self, plan: ModelPlan, workspace_bytes: int, *, rounds: bool = True) -> None:
        self.loaded = plan
        self.plan = plan.without_dropped()
        self.memory = Memory(rounds=rounds)
        self._workspace_bytes = workspace_bytes
        self._workspace: Block | None = None
        self._conv_kernel: Block | None = None
        # Transformers 4.47 grows the tables to the tokenizer's length and the new [PAD]; it shrinks padded ones.
        self.vocab_size = plan.llm.tokenizer_length + 1
        self.num_audio_tokens = self.plan.connector.num_tokens(self.plan.speech.num_positions)
        self.length = PROMPT_TOKENS + self.num_audio_tokens

    # Loading

    def load(self) -> None:
        """Build the model; its LLM goes to the GPU at once if bitsandbytes keeps it, else all goes there at the end."""
        if self.loaded.quantization is not None and self.loaded.quantization.kind == "nf4":
            self._load_nf4()
        else:
            self._move_llm()
        self.memory.phase = "load: weights"
        weights = self.plan.weights()
        for part in ("speech_encoder", "sound_encoder", "connector"):
            for weight in weights[part]:
                self._hold(weight.size * _FULL, part)
        self.take_inputs()

    def take_inputs(self) -> None:
        """Take what the protocol makes of a clip before its clock starts."""
        take = self.memory.take
        take(self.plan.speech.num_mels * 2 * self.plan.speech.num_positions * _FULL, "inputs")
        take(AUDIO_S * SAMPLE_RATE_HZ * 8, "inputs")  # the waveform comes from numpy, in float64
        take(AUDIO_S * SAMPLE_RATE_HZ, "inputs")  # its padding mask

    def _load_nf4(self) -> None:
        memory, llm = self.memory, self.loaded.llm
        memory.phase = "load: 4-bit weights"
        tables = {"embedding": self._hold(llm.vocab_size * llm.width * _HALF)}
        self._hold(256 * _FULL)  # the code of 8-bit scales
        kept: list[Block] = []
        # Tensors arrive in the order of their names: layer 10 before layer 2.
        weights = sorted(llm.weights(split_experts=True), key=lambda weight: weight.name)
        for weight in weights:
            if weight.kind in ("embedding", "head"):
                continue
            layer = weight.name.split(".")[2]
            blocks = self._quantize(weight)
            if layer.isdigit() and int(layer) >= self.plan.llm.num_layers:
                kept += blocks
        if not llm.tied:
            tables["head"] = self._hold(llm.vocab_size * llm.width * _HALF)
        memory.phase = "load: resize_token_embeddings"
        for old in tables.values():
            self._resize(old)
        memory.phase = "load: adapters"
        for weight in self.loaded.weights(split_experts=True)["lora"]:
            block = self._hold(weight.size * _FULL, "lora")
            if int(weight.name.split(".")[2]) >= self.plan.llm.num_layers:
                kept.append(block)
        if kept:  # which layers go is the pruner's choice; their shapes are all alike
            memory.drop(*kept)
            memory.empty_cache()

    def _quantize(self, weight: Weight) -> list[Block]:
        quantization = self.loaded.quantization
        assert quantization is not None
        sizes = stored_bytes(weight, "float16", quantization)
        if weight.kind != "linear" or quantization.is_stored:
            return [self._hold(size) for size in sizes]
        # The fp16 weight goes to the GPU to be quantised there; its scales are fp32 until they are quantised too.
        original = self.memory.take(weight.size * _HALF, "load copies")
        scales = self.memory.take(ceil(weight.size / quantization.group_size) * _FULL, "load copies")
        blocks = [self._hold(size) for size in sizes]
        self.memory.drop(scales, original)
        return blocks

    def _resize(self, old: Block) -> Block:
        """Grow a table by one row: transformers draws it from the mean and covariance of the others, in float32."""
        llm, memory = self.loaded.llm, self.memory
        new = self._hold(self.vocab_size * llm.width * _HALF)
        if self.vocab_size > llm.vocab_size:
            table = llm.vocab_size * llm.width * _FULL
            covariance = llm.width * llm.width * _FULL
            copies = [memory.take(size, "load copies") for size in (table, llm.width * _FULL, table)]
            self._use_cublas()
            copies += [memory.take(covariance, "load copies") for _ in range(2)]
            memory.drop(*copies)
        memory.drop(old)
        return new

    def _move_llm(self) -> None:
        self.memory.phase = "load: weights"
        adapters = self.plan.adapters
        for weight in self.plan.llm.weights(split_experts=True, vocab_size=self.vocab_size):
            if adapters and adapters.fits(weight):
                for pair in adapters.weights(weight):
                    self._hold(pair.size * _FULL, "lora")
            for size in stored_bytes(weight, "float16", self.plan.quantization):
                self._hold(size)

    def _hold(self, num_bytes: int, part: str = "language_model") -> Block:
        return self.memory.take(num_bytes, part)

    # Running

    def encode_connect_answer(self) -> None:
        """One round of the protocol."""
        self._use_cublas()
        frames = self._run_whisper()
        sound = self._run_sound() if self.plan.sound else None
        self._run_connector(frames, sound)
        self._run_llm()

    def _use_cublas(self) -> None:
        if self._workspace is None:
            self._workspace = self.memory.take(self._workspace_bytes, "workspace")

    def _take(self, *shape: int, size: int = _HALF) -> Block:
        num_bytes = size
        for length in shape:
            num_bytes *= length
        return self.memory.take(num_bytes, _ACTIVATIONS)

    def _linear(self, rows: int, inputs: int, outputs: int, *, casts_input: bool = True) -> Block:
        """A float32 Linear under autocast: weight and bias, and a float32 input, are cast for the moment."""
        casts = [self._take(rows, inputs)] if casts_input else []
        casts += [self._take(inputs, outputs), self._take(outputs)]
        result = self._take(rows, outputs)
        self.memory.drop(*casts)
        return result

    def _run_whisper(self) -> Block:
        self.memory.phase = "run: Whisper"
        shape, drop = self.plan.speech, self.memory.drop
        D, T = shape.width, shape.num_positions
        first = self._linear(2 * T, 3 * shape.num_mels, D)  # conv1: its input and kernel are cast alike
        embeds = self._take(2 * T, D)
        drop(first)
        second = self._linear(T, 3 * D, D, casts_input=False)
        drop(embeds)
        embeds = self._take(T, D)  # stays until the encoder returns
        drop(second)
        hidden = self._take(T, D, size=_FULL)
        for _ in range(shape.num_layers):
            after = self._whisper_layer()
            drop(hidden)
            hidden = after
        output = self._take(T, D, size=_FULL)
        drop(hidden, embeds)
        return output

    def _whisper_layer(self) -> Block:
        shape, drop = self.plan.speech, self.memory.drop
        D, T, H = shape.width, shape.num_positions, shape.num_heads
        normed = self._take(T, D, size=_FULL)
        states = []
        for _ in range(3):  # query, key, value: projected, then laid out by head
            projected = self._linear(T, D, D)
            states.append(self._take(T, D))
            drop(projected)
        scores = self._take(H, T, T)
        weights = self._take(H, T, T, size=_FULL)  # autocast's softmax reads half and writes float
        drop(scores)
        halves = self._take(H, T, T)
        mixed = self._take(T, D)
        drop(halves)
        joined = self._take(T, D)
        drop(mixed)
        projected = self._linear(T, D, D, casts_input=False)
        drop(joined, weights, *states, normed)
        middle = self._take(T, D, size=_FULL)
        drop(projected)
        normed = self._take(T, D, size=_FULL)
        wide = self._linear(T, D, shape.ffn_width)
        active = self._take(T, shape.ffn_width)
        drop(wide, normed)
        narrow = self._linear(T, shape.ffn_width, D, casts_input=False)
        drop(active)
        result = self._take(T, D, size=_FULL)
        drop(narrow, middle)
        return result

    def _run_sound(self) -> Block:
        """BEATs as published; an EAT, whose published integration was broken, as its attention kernels run it."""
        self.memory.phase = "run: sound encoder"
        sound, drop = self.plan.sound, self.memory.drop
        assert sound is not None
        D, H, T = sound.width, sound.num_heads, sound.num_tokens(AUDIO_S)
        hidden = self._take(T, D, size=_FULL)
        bias: Block | None = None
        if isinstance(sound, BeatsShape):
            # weight_norm makes the kernel anew in each forward pass and leaves it on the module.
            width, group, kernel = sound.conv_shape
            made = self.memory.take(width * group * kernel * _FULL, "sound_encoder")
            if self._conv_kernel:
                drop(self._conv_kernel)
            self._conv_kernel = made
            drop(self._linear(T, group * kernel, width))
            bias = self._take(H, T, T, size=_FULL)
        for _ in range(sound.num_layers):
            states = [self._linear(T, D, D) for _ in range(3)]
            if bias:
                scores = [self._take(H, T, T), self._take(H, T, T)]  # less their maximum, times alpha
                gated = [self._take(H, T, T, size=_FULL) for _ in range(3)]  # bias by gate, sum, softmax
                drop(*scores, *gated)
            mixed = self._take(T, D)
            drop(*states, mixed)
            wide = self._linear(T, D, sound.ffn_width)
            drop(wide, self._linear(T, sound.ffn_width, D, casts_input=False))
        if bias:
            drop(bias)
        return hidden

    def _run_connector(self, frames: Block, sound: Block | None) -> None:
        self.memory.phase = "run: connector"
        connector, drop = self.plan.connector, self.memory.drop
        D, T = connector.input_width, self.plan.speech.num_positions
        joined = self._take(T, D, size=_FULL)
        drop(frames, *([sound] if sound else []))
        windows = connector.num_windows(T) * connector.frames_per_window
        unfolded = [self._take(windows, D, size=_FULL) for _ in range(2)]  # F.unfold, then frames before channels
        drop(joined)
        rows = self.num_audio_tokens
        made: list[Block] = []
        if isinstance(connector, QFormerShape):
            for _ in range(connector.num_layers):
                # Trained weights need gradients: autocast keeps their casts until its context ends.
                made += [self._take(D, connector.width) for _ in range(2)]
                made += [self._take(connector.width, connector.width) for _ in range(6)]
                made += [self._take(connector.width, connector.ffn_width) for _ in range(2)]
                drop(*[self._linear(windows, D, connector.width) for _ in range(2)])
        elif isinstance(connector, MLPShape):
            drop(self._linear(rows, D * connector.frames_per_window, connector.width))
        else:  # the published implementation has none: what ours would take there
            S = connector.num_steps(T)
            drop(self._linear(S, connector.width, connector.ffn_width))
            drop(*[self._take(S, 1 + connector.num_pieces, size=_FULL) for _ in range(3)])
        drop(*made, *unfolded)

    def _run_llm(self) -> None:
        self.memory.phase = "run: prefill"
        llm, drop, L = self.plan.llm, self.memory.drop, self.length
        hidden = self._take(L, llm.width)
        cache: list[Block] = []
        for _ in range(llm.num_layers):
            queries = self._llm_linear(L, llm.width, llm.query_width)
            for _ in range(2):
                made = self._llm_linear(L, llm.width, llm.kv_width)
                cache.append(self.memory.take(L * llm.kv_width * _HALF, "kv_cache"))
                drop(made)
            drop(queries, self._llm_linear(L, llm.query_width, llm.width))
            width = llm.ffn_width * max(1, llm.experts_per_token) + llm.shared_ffn_width
            gate, up = self._llm_linear(L, llm.width, width), self._llm_linear(L, llm.width, width)
            product = self._take(L, width)
            drop(gate, up, product, self._llm_linear(L, width, llm.width))
        logits = self._take(L, self.vocab_size)  # of every position
        if llm.logits_capped:
            capped = self._take(L, self.vocab_size)
            drop(logits)
            logits = capped
        self.memory.phase = "run: one step"
        drop(self._take(1, self.vocab_size))
        drop(logits, *cache, hidden)

    def _llm_linear(self, rows: int, inputs: int, outputs: int) -> Block:
        """A linear of the LLM: 4-bit weights become fp16 for the moment, adapters compute in float32."""
        temporary: list[Block] = []
        if self.plan.quantization is not None:
            temporary.append(self._take(inputs, outputs))
        result = self._take(rows, outputs)
        self.memory.drop(*temporary)
        if self.plan.adapters is not None:
            adapted = [self._take(rows, inputs, size=_FULL), self._take(rows, outputs, size=_FULL)]
            self.memory.drop(*adapted)
        return result
