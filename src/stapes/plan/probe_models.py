"""Models with random weights whose layers are timed: tiny ones, and such as do not fit into the caches."""

from __future__ import annotations

from typing import Any

FRAMES = 32
"""Feature frames of a tiny encoder's clip."""

WIDTH = 512
DEPTHS = (4, 9)
MIDDLE_FRAMES = 512
"""Of the models in the middle: width, numbers of layers, feature frames of their clip."""


def tiny_models() -> dict[str, Any]:
    """Build models so narrow that calling their layers is all that takes time, of two depths each."""
    models = {f"llm_{layers}": _tiny_llm(layers) for layers in (2, 10)}
    models |= {f"adapted_{layers}": _adapt(_tiny_llm(layers)) for layers in (2, 10)}
    models |= {f"qformer_{layers}": _tiny_qformer(layers) for layers in (1, 5)}
    return {**models, "whisper": _tiny_whisper()}


def _tiny_llm(num_layers: int) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


def _adapt(model: Any) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), model)
    return model.eval()


def _tiny_whisper() -> Any:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=128,
        max_source_positions=FRAMES // 2,
    )
    return WhisperEncoder(config).eval()


def _tiny_qformer(num_layers: int) -> Any:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    config = Blip2QFormerConfig(
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=128,
        cross_attention_frequency=1,
        encoder_hidden_size=64,
    )
    return Blip2QFormerModel(config).eval()


def middle_models(values: Any) -> dict[str, Any]:
    """Build LLMs and encoders whose weights do not fit into the caches, of two depths each."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    models: dict[str, Any] = {}
    for depth in DEPTHS:
        llm = LlamaConfig(
            vocab_size=64,
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=depth,
            num_attention_heads=8,
            num_key_value_heads=8,
        )
        whisper = WhisperConfig(
            d_model=WIDTH,
            encoder_layers=depth,
            encoder_attention_heads=8,
            encoder_ffn_dim=4 * WIDTH,
            max_source_positions=MIDDLE_FRAMES // 2,
        )
        models[f"middle_llm_{depth}"] = AutoModelForCausalLM.from_config(llm).eval()
        models[f"middle_whisper_{depth}"] = WhisperEncoder(whisper).eval()
        for model in (models[f"middle_llm_{depth}"], models[f"middle_whisper_{depth}"]):
            start = 0
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    size = module.weight.numel()
                    module.weight = torch.nn.Parameter(values[start : start + size].view_as(module.weight), False)
                    start += size
    return models
