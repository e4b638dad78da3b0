import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from stapes.model import StapesForConditionalGeneration
from stapes.model.int8 import Int8Linear, swap_linears


def make_layer(inputs: int = 96, outputs: int = 40, *, seed: int = 0) -> tuple[nn.Linear, Int8Linear]:
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs)
    return linear, Int8Linear.from_linear(linear)


def test_weights_are_rounded_to_the_nearest_level_of_their_channel() -> None:
    linear, layer = make_layer()
    assert layer.int_weight().dtype == torch.int8
    assert layer.int_weight().abs().amax(dim=1).tolist() == [127] * 40
    error = (layer.dequantize() - linear.weight).abs()
    assert (error <= layer.scale[:, None] * 0.5001).all()


def test_the_product_is_that_of_the_weights_it_stands_for() -> None:
    _, layer = make_layer()
    rows = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    exact = rows.double() @ layer.dequantize().double().T + layer.bias.detach().double()
    # A row keeps 14 bits: the error of a sum of 96 products is some 1e-4 of the largest.
    assert (layer(rows).double() - exact).abs().max() < 2e-4 * exact.abs().max()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_a_row_is_the_same_bits_alone_and_among_others(scale: float) -> None:
    _, layer = make_layer(inputs=576, outputs=64)
    rows = scale * torch.randn(37, 576, generator=torch.Generator().manual_seed(2))
    rows[3] *= 1000
    with torch.inference_mode():
        together = layer(rows)
        for size in (1, 2, 8):
            parts = [layer(rows[start : start + size]) for start in range(0, 37, size)]
            assert torch.equal(torch.cat(parts), together)


def test_largest_values_do_not_saturate() -> None:
    linear = nn.Linear(512, 3, bias=False)
    nn.init.ones_(linear.weight)
    layer = Int8Linear.from_linear(linear)
    rows = torch.ones(2, 512)
    rows[1] = -1
    assert torch.allclose(layer(rows)[:, 0], torch.tensor([512.0, -512.0]), rtol=1e-6)


def test_a_row_of_zeros_gives_the_bias() -> None:
    _, layer = make_layer()
    assert torch.equal(layer(torch.zeros(1, 2, 96)), layer.bias.detach().expand(1, 2, 40))


def test_without_the_kernel_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = make_layer()
    plain = copy.deepcopy(packed)
    rows = torch.randn(4, 96, generator=torch.Generator().manual_seed(3))
    with_kernel = packed(rows)
    monkeypatch.setattr("stapes.model.int8._has_kernel", lambda: False)
    assert torch.allclose(plain(rows), with_kernel, rtol=1e-6, atol=1e-6)


def test_packed_or_not_a_layer_is_saved_copied_and_cast_alike() -> None:
    _, layer = make_layer()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    rows = torch.randn(2, 96)
    said = layer(rows)
    assert layer.weight.device.type == "meta"
    for other in (copy.deepcopy(layer), layer):
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
        assert torch.equal(other(rows), said)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.scale.dtype == torch.float32
    assert torch.equal(half.int_weight(), before["weight"])
    assert half(rows.bfloat16()).dtype == torch.bfloat16


def test_gradients_reach_the_rows_as_through_a_linear_layer() -> None:
    _, layer = make_layer()
    rows = torch.randn(3, 96, requires_grad=True)
    layer(rows).sum().backward()
    expected = layer.dequantize().sum(dim=0).expand(3, 96)
    assert torch.allclose(rows.grad, expected, atol=1e-5)


def test_encoder_and_llm_are_swapped_and_the_connector_is_not(tiny_model_and_processor: Callable) -> None:
    model: StapesForConditionalGeneration = tiny_model_and_processor()[0]
    names = swap_linears(model, ["lm_head"])
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Int8Linear)}
    assert {name for name, kind in kinds.items() if kind is Int8Linear} == set(names)
    left = [name for name, kind in kinds.items() if kind is nn.Linear and not name.startswith("connector.")]
    assert left == ["language_model.lm_head"]


def test_what_cannot_be_swapped_is_refused_and_nothing_changes(tiny_model_and_processor: Callable) -> None:
    model = tiny_model_and_processor()[0]
    with pytest.raises(ValueError, match=r"no module's name contains `lm_hed`; did you mean `lm_head`\?"):
        swap_linears(model, ["lm_hed"])
    model.add_lora(r=2, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="LoRA adapters"):
        swap_linears(model, [])
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


def test_an_int8_model_comes_back_from_a_folder(tiny_model_and_processor: Callable, tmp_path: Path) -> None:
    model = tiny_model_and_processor()[0]
    swap_linears(model, [])
    model.config.int8 = {"skip": []}
    ids = torch.arange(1, 9)[None]
    said = model(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    again = StapesForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=ids).logits, said)
