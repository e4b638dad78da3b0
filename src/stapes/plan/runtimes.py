"""Which programs can run a model of this shape, and what stands in the way of the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .connector import MLPShape, QFormerShape
from .model_plan import ModelPlan

_ABORTING_STACK = 8
_WORKING_STACKS = (5, 10)
"""Frames that llama.cpp's `ultravox` projector stacks: with 8 it aborts, 5 and 10 were seen to work."""


@dataclass(frozen=True)
class Runtime:
    """A program that runs models.

    Attributes:
        name: what it is called.
        verdict: `yes`, `no`, or `partly` (not all of it, or not as it is).
        how: the way there, e.g. the projector to write.
        why_not: what stands in the way, and what to change; None if nothing does.
    """

    name: str
    verdict: Literal["yes", "partly", "no"]
    how: str | None = None
    why_not: str | None = None


def find_runtimes(plan: ModelPlan) -> list[Runtime]:
    """Tell for each runtime we know whether the shape of a model reaches it."""
    return [_pytorch(plan), _exported("ONNX Runtime", plan), _exported("OpenVINO", plan), _llama_cpp(plan)]


def describe_runtimes(plan: ModelPlan) -> list[dict[str, Any]]:
    """The same, JSON-ready."""
    return [asdict(runtime) for runtime in find_runtimes(plan)]


def _pytorch(plan: ModelPlan) -> Runtime:
    if plan.quantization is not None and plan.quantization.kind == "gptq":
        why = "weights stored by GPTQ are not read; take the LLM in full precision, and `quantization` in a stage"
        return Runtime("PyTorch", "no", why_not=why)
    if plan.quantization is not None and plan.quantization.kind == "nf4":
        return Runtime("PyTorch", "yes", how="bitsandbytes' 4-bit linears; on a CPU they save memory, not time")
    return Runtime("PyTorch", "yes", how="`stapes.load`, or transformers' `from_pretrained`")


def _exported(name: str, plan: ModelPlan) -> Runtime:
    if plan.quantization is not None:
        why = f"{plan.quantization.kind} linears have no export; quantise the exported float model instead"
        return Runtime(name, "no", why_not=why)
    if plan.int8_skip is not None:
        why = "torch's int8 linears have no export; export the variant before `quantize` and quantise it there"
        return Runtime(name, "no", why_not=why)
    if plan.llm.num_experts:
        return Runtime(name, "partly", how="encoder and connector", why_not="a mixture of experts is not exported")
    adapters = "; merge the adapters first" if plan.adapters else ""
    return Runtime(name, "yes", how=f"encoder with connector, embeddings and decoder as three graphs{adapters}")


def _llama_cpp(plan: ModelPlan) -> Runtime:
    name = "llama.cpp"
    blockers = []
    if plan.sound is not None:
        blockers.append("two encoders have no graph there; leave `sound_encoder` out")
    connector = plan.connector
    if not isinstance(connector, MLPShape):
        kind = "Q-Former over Whisper" if isinstance(connector, QFormerShape) else "ctc_compressor"
        blockers.append(f"a {kind} has no graph there; use `connector: {{kind: stacked_mlp, stack: 5}}`")
    elif connector.frames_per_window == _ABORTING_STACK:
        blockers.append(f"its `ultravox` projector aborts with stack {_ABORTING_STACK}; use 5 or 10")
    elif connector.frames_per_window not in _WORKING_STACKS:
        blockers.append(f"its `ultravox` projector was not tried with stack {connector.frames_per_window}; use 5 or 10")
    if blockers:
        return Runtime(name, "no", how="the LLM alone, as GGUF", why_not="; ".join(blockers))
    projector = f"encoder and connector as a `mmproj` with projector `ultravox`, stack {connector.frames_per_window}"
    steps = ["LLM as GGUF", projector]
    if plan.adapters is not None:
        steps.insert(0, "adapters merged")
    if plan.quantization is not None or plan.int8_skip is not None:
        steps.insert(0, "from the variant before quantisation")
    why = "the graph of that projector has no node for the connector's last norm (`norm_out`)"
    return Runtime(name, "partly", how=", ".join(steps), why_not=why)
