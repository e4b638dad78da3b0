"""Linear layers with int8 weights: exact sums, nobody's neighbour, and safe to cast, copy, save and load."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stapes.model import StapesForConditionalGeneration
from stapes.model.int8 import Int8Embedding, Int8Linear, swap_linears

ENGINES = torch.backends.quantized.supported_engines
KERNEL_ENGINES = ("x86", "fbgemm")
needs_kernel = pytest.mark.skipif(not {*KERNEL_ENGINES} & {*ENGINES}, reason="this CPU has no int8 kernel")


def with_kernel(layer: Int8Linear, rows: Tensor) -> Tensor:
    return layer(rows)


def without_kernel(layer: Int8Linear, rows: Tensor) -> Tensor:
    """Run a copy of the layer while torch has an engine that our kernel does not belong to."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = next(name for name in ENGINES if name not in KERNEL_ENGINES)
    try:
        plain = copy.deepcopy(layer)
        result = plain(rows)
    finally:
        torch.backends.quantized.engine = before
    assert not plain.weight.is_meta  # it really went without
    return result


def bias_of(layer: Int8Linear) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
    exact = rows.double() @ layer.dequantize().double().T + bias_of(layer).double()
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


def whole_numbers(kind: str, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Make integer rows (4, inputs) that peak at 8192 and weights (outputs, inputs) that peak at 127, as float32."""
    if kind == "random":
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(-8192, 8193, (4, inputs), generator=generator).float()
        weight = torch.randint(-127, 128, (outputs, inputs), generator=generator).float()
    else:
        # 8192 has the digits (64, 0), 8000 has (62, 64): one digit at its maximum everywhere, all of one sign.
        rows = torch.full((4, inputs), 8192.0 if kind == "coarse" else 8000.0)
        weight = torch.full((outputs, inputs), 127.0)
        rows[1::2] *= -1
        weight[1::2] *= -1
    rows[:, 0] = 8192
    weight[:, 0] = 127
    return rows, weight


@torch.no_grad()
@pytest.mark.parametrize("kind", ["random", "coarse", "fine"])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 30), (576, 192), (2000, 65)])
def test_whole_numbers_are_multiplied_exactly(kind: str, inputs: int, outputs: int) -> None:
    """Where every value is a level, nothing is rounded, and nothing saturates in the kernel's sums."""
    rows, weight = whole_numbers(kind, inputs, outputs)
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = weight
    layer = Int8Linear.from_linear(linear)
    exact = (rows.long() @ weight.long().T).float()
    assert torch.equal(layer(rows), exact)
    assert torch.equal(without_kernel(layer, rows), exact)


@needs_kernel
def test_nothing_saturates_without_vnni() -> None:
    """The kernel adds pairs of products in 16 bits where a CPU has no VNNI; here it is told not to use it."""
    script = """
import torch
from stapes.model.int8 import Int8Linear
torch.set_num_threads(1)
linear = torch.nn.Linear(576, 2, bias=False)
linear.weight.data = torch.tensor([[127.0], [-127.0]]).expand(2, 576)
layer = Int8Linear.from_linear(linear)
with torch.no_grad():
    print(*layer(torch.full((1, 576), 8192.0))[0].long().tolist())
kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
print(*kernel(torch.full((1, 576), 127.0), 1.0, 128, layer._packed)[0].long().tolist())
"""
    environment = {**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    ours, eight_bits = (list(map(int, line.split())) for line in done.stdout.splitlines())
    exact = 576 * 127
    assert eight_bits != [127 * exact, -127 * exact]  # rows of 8 bits do saturate here, so this test can see it
    assert ours == [8192 * exact, -8192 * exact]


@torch.no_grad()
@pytest.mark.parametrize("run", [with_kernel, without_kernel])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 3), (48, 33), (512, 515)])
def test_neither_padding_nor_place_changes_a_bit(
    run: Callable[[Int8Linear, Tensor], Tensor], inputs: int, outputs: int
) -> None:
    _, layer = make_layer(inputs, outputs)
    rows = normal(37, inputs) * torch.logspace(-5, 4, 37)[:, None]
    alone = torch.cat([run(layer, row[None]) for row in rows])
    assert torch.equal(run(layer, rows), alone)
    assert torch.equal(run(layer, rows.flip(0)), alone.flip(0))
    assert torch.equal(run(layer, rows[:24].view(2, 12, inputs)).view(24, outputs), alone[:24])
    for fill in (0.0, 1e6):
        padded = torch.full((3, 50, inputs), fill)
        padded[1, 13:] = rows
        assert torch.equal(run(layer, padded)[1, 13:], alone)


@torch.no_grad()
def test_threads_change_no_bit() -> None:
    _, layer = make_layer(576, 192)
    rows = normal(90, 576)
    expected = layer(rows)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            assert torch.equal(layer(rows), expected)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.parametrize("run", [with_kernel, without_kernel])
def test_unusual_rows_keep_to_themselves(run: Callable[[Int8Linear, Tensor], Tensor]) -> None:
    _, layer = make_layer()
    rows = normal(6, 96)
    usual = run(layer, rows)
    rows[1] = 0
    rows[2, 7] = torch.nan
    rows[3] = 1e-38  # a float of this size has no reciprocal
    result = run(layer, rows)
    assert torch.equal(result[1], bias_of(layer))
    assert result[2].isnan().all()
    torch.testing.assert_close(result[3], bias_of(layer))
    assert torch.equal(result[[0, 4, 5]], usual[[0, 4, 5]])
    assert run(layer, rows[:0]).shape == (0, 40)


def test_a_channel_of_zeros_has_a_scale() -> None:
    linear = nn.Linear(8, 3, bias=False)
    nn.init.zeros_(linear.weight[1])
    layer = Int8Linear.from_linear(linear)
    assert layer.scale[1] == 1
    assert layer(torch.ones(1, 8))[0, 1] == 0


def test_a_row_of_zeros_gives_the_bias() -> None:
    _, layer = make_layer()
    assert torch.equal(layer(torch.zeros(1, 2, 96)), bias_of(layer).expand(1, 2, 40))


@torch.no_grad()
def test_without_the_kernel_the_bits_are_the_same() -> None:
    _, layer = make_layer(576, 192)
    rows = normal(4, 25, 576) * torch.logspace(-4, 4, 100).view(4, 25, 1)
    expected = without_kernel(layer, rows)
    assert torch.equal(layer(rows), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(without_kernel(layer, rows), expected)


def test_packed_or_not_a_layer_is_saved_copied_and_cast_alike() -> None:
    _, layer = make_layer()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    rows = torch.randn(2, 96)
    said = layer(rows)
    assert layer.weight.device.type == "meta"
    loaded = make_layer(seed=1)[1]
    loaded(rows)
    loaded.load_state_dict(layer.state_dict())  # into one that is packed already
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded, layer):
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
    assert rows.grad is not None
    assert torch.allclose(rows.grad, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_leaves_weights_and_scales(dtype: torch.dtype) -> None:
    _, layer = make_layer()
    rows = normal(4, 96).to(dtype)
    weight, scale, expected = layer.int_weight().clone(), layer.scale.clone(), layer(rows.float())
    model = nn.Sequential(layer).to(dtype)
    assert bias_of(layer).dtype == dtype
    assert torch.equal(layer.int_weight(), weight)
    assert torch.equal(layer.scale, scale)
    assert model(rows).dtype == dtype
    torch.testing.assert_close(model(rows).float(), expected, rtol=2e-2, atol=2e-2)
    model.float()
    assert torch.equal(layer.scale, scale)


def test_on_the_meta_device_there_are_shapes_alone() -> None:
    with torch.device("meta"):
        layer = Int8Linear.from_linear(nn.Linear(96, 40))
    _, real = make_layer()
    shapes, expected = (
        {key: (value.shape, value.dtype) for key, value in each.state_dict().items()} for each in (layer, real)
    )
    assert shapes == expected
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    layer.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(layer(normal(4, 96)), real(normal(4, 96)))


@pytest.mark.parametrize("sound", [None, "beats", "eat"])
def test_encoders_and_llm_are_swapped_and_the_connector_is_not(
    tiny_model_and_processor: Callable, sound: str | None
) -> None:
    model: StapesForConditionalGeneration = tiny_model_and_processor(sound=sound)[0]
    names = swap_linears(model, ["lm_head"])
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Int8Linear)}
    assert {name for name, kind in kinds.items() if kind is Int8Linear} == set(names)
    left = [name for name, kind in kinds.items() if kind is nn.Linear and not name.startswith("connector.")]
    assert left == ["language_model.lm_head"]


def test_counts_of_parameters_stay(tiny_model_and_processor: Callable) -> None:
    model: StapesForConditionalGeneration = tiny_model_and_processor()[0]
    before = model.num_parameters_by_part()
    swap_linears(model, [])
    assert model.num_parameters_by_part() == before
    model(input_ids=torch.arange(1, 9)[None])  # packed from here on
    assert model.num_parameters_by_part() == before


@torch.no_grad()
def test_a_tied_head_shares_its_weights_with_the_embeddings(tiny_model_and_processor: Callable) -> None:
    model: StapesForConditionalGeneration = tiny_model_and_processor()[0]
    table = model.language_model.model.embed_tokens.weight.clone()
    swap_linears(model, [])
    head, embeddings = model.language_model.lm_head, model.get_input_embeddings()
    assert isinstance(embeddings, Int8Embedding)
    assert isinstance(head, Int8Linear)
    ids = torch.tensor([[3, 0, 261], [7, 7, 1]])
    for _ in range(2):
        assert torch.equal(embeddings(ids), head.dequantize()[ids])
        head(normal(1, 64))  # packed from here on
    assert ((embeddings(ids) - table[ids]).abs() <= table[ids].abs().amax(-1, keepdim=True) * 0.5001 / 127).all()
    assert [key for key in model.state_dict() if "embed_tokens" in key or "lm_head" in key] == [
        "language_model.lm_head.weight",
        "language_model.lm_head.scale",
    ]
    model.tie_weights()  # must not make a tie of its own
    assert torch.equal(embeddings(ids), head.dequantize()[ids])
    copied = copy.deepcopy(model)
    copied.language_model.lm_head.scale.zero_()
    assert not copied.get_input_embeddings()(ids).any()  # looks up its own head
    assert embeddings(ids).any()
    nn.Module.to(model, torch.bfloat16)
    assert embeddings(ids).dtype == torch.bfloat16


@pytest.mark.parametrize("text", ["lm_head", "embed_tokens"])
def test_a_skipped_head_stays_tied_to_float_embeddings(tiny_model_and_processor: Callable, text: str) -> None:
    model: StapesForConditionalGeneration = tiny_model_and_processor()[0]
    assert "language_model.lm_head" not in swap_linears(model, [text])
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    assert model.language_model.lm_head.weight.dtype == torch.float32


def test_a_head_of_its_own_leaves_the_embeddings(tiny_model_and_processor: Callable) -> None:
    config = copy.deepcopy(tiny_model_and_processor()[0].config)
    config.text_config.tie_word_embeddings = False
    model = StapesForConditionalGeneration(config)
    assert "language_model.lm_head" in swap_linears(model, [])
    assert type(model.get_input_embeddings()) is nn.Embedding


def test_skipping(tiny_model_and_processor: Callable) -> None:
    model = tiny_model_and_processor()[0]
    layer = "language_model.model.layers.1"
    assert swap_linears(model, ["speech_encoder", "layers.0.", "down_proj"]) == [
        *(f"{layer}.self_attn.{name}_proj" for name in "qkvo"),
        f"{layer}.mlp.gate_proj",
        f"{layer}.mlp.up_proj",
        "language_model.lm_head",
    ]


def test_skipping_everything_is_refused(tiny_model_and_processor: Callable) -> None:
    model = tiny_model_and_processor()[0]
    with pytest.raises(ValueError, match=r"^skip: speech, language leaves no Linear layer to store as int8$"):
        swap_linears(model, ["speech", "language"])
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


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
