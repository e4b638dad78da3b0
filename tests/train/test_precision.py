from __future__ import annotations

import pytest
import torch

from stapes.errors import RecipeError
from stapes.train import precision
from stapes.train.precision import choose_attention, choose_precision, torch_dtype


@pytest.fixture(params=[True, False], ids=["new GPU", "old GPU"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: request.param)
    return request.param


def test_auto_fits_the_device(has_bf16: bool) -> None:
    assert choose_precision("auto", "cuda:1") == ("bf16" if has_bf16 else "fp16")
    assert choose_precision("auto", "cpu") == "fp32"
    assert choose_precision("auto", "mps") == "fp32"


def test_what_is_named_is_taken(has_bf16: bool) -> None:
    assert choose_precision("fp32", "cuda") == "fp32"
    assert choose_precision("fp16", "cuda") == "fp16"
    assert choose_precision("bf16", "cpu") == "bf16"


def test_what_the_device_cannot_do_is_refused(has_bf16: bool) -> None:
    with pytest.raises(RecipeError, match="precision fp16 needs a GPU"):
        choose_precision("fp16", "cpu")
    if not has_bf16:
        with pytest.raises(RecipeError, match="precision bf16 is not supported by this GPU"):
            choose_precision("bf16", "cuda")


@pytest.mark.parametrize(
    ("installed", "dtype", "device", "attention"),
    [
        (True, "bf16", "cuda:0", "flash_attention_2"),
        (True, "fp16", "cuda", "flash_attention_2"),
        (True, "fp32", "cuda", "sdpa"),
        (True, "bf16", "cpu", "sdpa"),
        (False, "bf16", "cuda", "sdpa"),
    ],
)
def test_flash_attention_where_it_can_work(
    installed: bool, dtype: precision.Precision, device: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether the package is there is transformers' to find out; no machine of ours has it.
    monkeypatch.setattr(precision, "is_flash_attn_2_available", lambda: installed)
    assert choose_attention(dtype, device) == attention


def test_dtypes_have_torch_names() -> None:
    assert [torch_dtype(name) for name in ("fp32", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]
