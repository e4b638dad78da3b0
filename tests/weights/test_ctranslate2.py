"""CTranslate2 files written by hand: read to the byte, converted to the same Whisper, refused when anything is off."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from stapes.errors import WeightsError
from stapes.weights.ctranslate2 import convert_whisper, read_model

WriteSource = Callable[..., Path]

# A file with one variable of each supported type, by the layout alone.
SMALL = b"".join(
    [
        struct.pack("<I", 6),
        struct.pack("<H", 5) + b"Spec\0",
        struct.pack("<I", 2),
        struct.pack("<I", 3),
        struct.pack("<H", 4)
        + b"a/b\0"
        + struct.pack("<BIIBI", 2, 2, 3, 0, 24)
        + struct.pack("<6f", 1, 2, 3, 4, 5, 6.5),
        struct.pack("<H", 2) + b"c\0" + struct.pack("<BBI", 0, 3, 4) + struct.pack("<i", -7),
        struct.pack("<H", 2) + b"d\0" + struct.pack("<BIBI", 1, 2, 4, 4) + struct.pack("<2e", 0.5, -2),
        struct.pack("<I", 1),
        struct.pack("<H", 2) + b"x\0" + struct.pack("<H", 2) + b"c\0",
    ]
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(content)
    return path


def test_a_file_is_read_to_the_byte(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, SMALL))
    assert (model.spec, model.revision, model.aliases) == ("Spec", 2, {"x": "c"})
    assert {name: (array.dtype.str, array.tolist()) for name, array in model.variables.items()} == {
        "a/b": ("<f4", [[1, 2, 3], [4, 5, 6.5]]),
        "c": ("<i4", -7),
        "d": ("<f2", [0.5, -2]),
    }


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(1, len(SMALL)):
        path = write(tmp_path, SMALL[:length])
        with pytest.raises(
            WeightsError, match=rf"model\.bin: ends at byte {length} in the middle of a value; it is cut"
        ):
            read_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"model\.bin: is empty$"),
        (SMALL + b"\0\0", r"model\.bin: 2 bytes follow after the last variable$"),
        (b"\7" + SMALL[1:], r"model\.bin: CTranslate2 file version 7; this reader knows 6$"),
        (
            SMALL.replace(b"Spec\0", b"Specs"),
            r"model\.bin: the name at byte 6 has no end; this is not a CTranslate2 file$",
        ),
        (SMALL.replace(struct.pack("<BBI", 0, 3, 4), struct.pack("<BBI", 0, 5, 4)), r"`c` has data type 5; known are"),
        (
            SMALL.replace(struct.pack("<BIIBI", 2, 2, 3, 0, 24), struct.pack("<BIIBI", 2, 2, 2, 0, 24)),
            r"`a/b` of shape \[2, 2\] and type float32 cannot have 24 bytes$",
        ),
    ],
)
def test_what_is_not_a_ctranslate2_file(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_model(write(tmp_path, content))


@pytest.fixture
def converted(write_source: WriteSource, tmp_path: Path) -> Path:
    folder = tmp_path / "whisper"
    folder.mkdir()
    assert convert_whisper(write_source(tmp_path / "source"), folder) == "float16"
    return folder


@torch.no_grad()
def test_the_converted_whisper_is_the_same(tiny_whisper: WhisperForConditionalGeneration, converted: Path) -> None:
    loaded: Any = WhisperForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    model, info = loaded
    assert {name: sorted(keys) for name, keys in info.items() if keys} == {}
    assert model.dtype == torch.float32
    expected = tiny_whisper.state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[257, 264, 1, 2, 3]])
    logits = model.eval()(input_features=features, decoder_input_ids=ids).logits
    assert torch.equal(logits, tiny_whisper(input_features=features, decoder_input_ids=ids).logits)


def test_the_tokenizer_has_whispers_tokens_at_their_places(converted: Path) -> None:
    tokenizer = WhisperTokenizer.from_pretrained(converted)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|notimestamps|>", "<|0.00|>", "<|30.00|>"]) == [
        256,
        264,
        265,
        1765,
    ]
    assert len(tokenizer) == 1766
    ids = tokenizer("Grüße, 2 mal", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "Grüße, 2 mal"
    assert tokenizer.pad_token_id == 256


def test_the_converted_folder_is_complete(converted: Path) -> None:
    processor = AutoProcessor.from_pretrained(converted)
    assert isinstance(processor.feature_extractor, WhisperFeatureExtractor)
    generation: Any = GenerationConfig.from_pretrained(converted)
    assert generation.suppress_tokens == [1, 2]
    assert generation.begin_suppress_tokens == [220, 256]
    assert (generation.decoder_start_token_id, generation.eos_token_id, generation.max_length) == (257, 256, 64)
    assert (generation.is_multilingual, generation.no_timestamps_token_id) == (False, 264)
    assert not hasattr(generation, "lang_to_id")
    assert json.loads((converted / "config.json").read_text())["dtype"] == "float32"


def test_a_model_that_is_no_whisper(ct2_file: Any, write_source: WriteSource, tmp_path: Path) -> None:
    variables: dict[str, np.ndarray] = ct2_file.variables
    name = "encoder/layer_0/self_attention/linear_0/bias"
    with_key_bias = variables[name].copy()
    with_key_bias[32] = 1  # the first of 32 keys, after 32 queries
    cases: list[tuple[dict[str, Any], str]] = [
        ({"spec": "TransformerSpec"}, r"holds `TransformerSpec` revision 3, not WhisperSpec revision 3$"),
        ({"revision": 4}, r"holds `WhisperSpec` revision 4, not WhisperSpec revision 3$"),
        ({"aliases": {}}, r"the output layer does not share the token embeddings: aliases \{\}$"),
        (
            {"variables": {n: v for n, v in variables.items() if n != "encoder/conv1/bias"}},
            r"variable `encoder/conv1/bias` is missing$",
        ),
        (
            {"variables": {**variables, "encoder/extra": np.zeros(1, np.float16)}},
            r"1 variables no Whisper has: `encoder/ex",
        ),
        (
            {"variables": {**variables, "encoder/conv2/bias": np.zeros(31, np.float16)}},
            r"variable `encoder/conv2/bias` has shape \[31\], not \[32\]$",
        ),
        (
            {"variables": {**variables, "decoder/activation": np.array(0, np.int8)}},
            r"`decoder/activation` is 0; a Whisper has 3$",
        ),
        (
            {"variables": {**variables, name: with_key_bias}},
            r"`encoder/layer_0/self_attention/linear_0` has a bias for keys",
        ),
    ]
    for number, (changes, message) in enumerate(cases):
        source = write_source(tmp_path / str(number), **changes)
        (source / "out").mkdir()
        with pytest.raises(WeightsError, match=message):
            convert_whisper(source, source / "out")


def test_another_models_vocabulary_is_refused(write_source: WriteSource, tmp_path: Path) -> None:
    source = write_source(tmp_path)
    tokens = (source / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    (source / "vocabulary.txt").write_text("\n".join(tokens[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"vocabulary\.txt: 1765 tokens, but the model has 1766$"):
        convert_whisper(source, tmp_path)
    tokens[3], tokens[4] = tokens[4], tokens[3]
    (source / "vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"tokenizer\.json and vocabulary\.txt disagree about \[.*\]$"):
        convert_whisper(source, tmp_path)
