"""4-bit weights: the values they stand for, where they are, and that they come back from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stapes.model import StapesForConditionalGeneration, nf4

# Table of arXiv 2305.14314, appendix E.
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def quantized(factory: Callable[..., Any], double_quant: bool = True) -> Any:
    model, _ = factory()
    nf4.swap_linears(model.language_model, double_quant)
    nf4.describe(model)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.arange(1, 20)[None]).logits


def test_a_weight_is_the_nearest_of_16_values_times_its_blocks_peak(tiny_model_and_processor: Callable) -> None:
    plain, _ = tiny_model_and_processor()
    for double_quant, limit in ((False, 0.0), (True, 0.02)):
        model = quantized(tiny_model_and_processor, double_quant)
        for name, layer in nf4.layers_of(model):
            blocks = plain.get_submodule(name).weight.detach().reshape(-1, 64)
            peaks = blocks.abs().amax(dim=1, keepdim=True)
            table = torch.tensor(NF4)
            nearest = (blocks / peaks)[..., None].sub(table).abs().argmin(dim=-1)
            expected = (table[nearest] * peaks).reshape(layer.out_features, layer.in_features)
            found = nf4.dequantize(layer).weight
            assert float((found - expected).abs().max()) <= limit * float(peaks.max()) + 1e-6


def test_the_llms_linears_are_in_4_bits_and_nothing_else(tiny_model_and_processor: Callable) -> None:
    before = tiny_model_and_processor()[0].num_parameters_by_part()
    model = quantized(tiny_model_and_processor)
    swapped = {name for name, _ in nf4.layers_of(model)}
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.rpartition(".")[2] for name in swapped} == set(kinds)
    assert len(swapped) == 2 * len(kinds)
    rest = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {f"{name}.weight" for name in swapped} == {name for name, _ in model.named_parameters()} - rest
    assert type(model.get_output_embeddings()) is nn.Linear
    assert model.num_parameters_by_part() == before
    packed = sum(p.numel() for _, p in model.named_parameters() if p.dtype == torch.uint8)
    assert 2 * packed == sum(layer.in_features * layer.out_features for _, layer in nf4.layers_of(model))


def test_the_layers_compute_with_what_they_stand_for(tiny_model_and_processor: Callable) -> None:
    model, plain = quantized(tiny_model_and_processor), quantized(tiny_model_and_processor)
    assert nf4.dequantize_all(plain) == 14
    assert not hasattr(plain.config, "quantization_config")
    embeds = [torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    found, expected = (m(inputs_embeds=e).logits for m, e in zip((model, plain), embeds, strict=True))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for output in (found, expected):
        output.square().mean().backward()
    torch.testing.assert_close(embeds[0].grad, embeds[1].grad, atol=1e-5, rtol=1e-4)


def test_looking_does_not_change_the_weights(tiny_model_and_processor: Callable) -> None:
    """On some CPUs bitsandbytes repacks weights in evaluation, with less exact scales, and then has no gradient."""
    model = quantized(tiny_model_and_processor).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = logits(model)
    assert torch.equal(logits(model), first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    embeds = torch.randn(1, 3, 64, requires_grad=True)
    model(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad is not None
    assert bool(embeds.grad.any())


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("double_quant", [False, True])
def test_a_complete_folder_comes_back(
    adapted: bool, double_quant: bool, tiny_model_and_processor: Callable, tmp_path: Path
) -> None:
    model = quantized(tiny_model_and_processor, double_quant)
    if adapted:
        model.add_lora(r=2, target_modules="all-linear", init_lora_weights=False)
    model.save_pretrained(tmp_path)
    loaded: Any = StapesForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    back, info = loaded
    assert {key: sorted(names) for key, names in info.items() if names} == {}
    assert torch.equal(logits(back), logits(model.eval()))
    assert [name for name, _ in nf4.layers_of(back)] == [name for name, _ in nf4.layers_of(model)]
    assert nf4.settings_of(back.config) == {"kind": "nf4", "double_quant": double_quant}
    assert back.num_parameters_by_part() == model.num_parameters_by_part()


def test_4_bits_cannot_learn_or_be_halved_again(tiny_model_and_processor: Callable) -> None:
    model = quantized(tiny_model_and_processor)
    with pytest.raises(ValueError, match="weights are in 4 bits and cannot learn; train `lora` instead"):
        model.set_trainable({"language_model"})
    with pytest.raises(ValueError, match="in 4 bits already"):
        nf4.swap_linears(model.language_model, double_quant=True)


def test_the_package_is_asked_for(tiny_model_and_processor: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"need the package bitsandbytes; install it: `pip install bitsandbytes`"):
        nf4.swap_linears(tiny_model_and_processor()[0].language_model, double_quant=True)
