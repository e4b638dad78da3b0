"""Whisper models in CTranslate2's format → the folder layout of transformers."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import WeightsError
from ..files import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import WhisperConfig

# CTranslate2's DataType. bfloat16 (5) is left out: numpy has no such type, and no mirror uses it.
_DTYPES = {0: np.dtype("<f4"), 1: np.dtype("i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<f2")}
_VERSION = 6
_WHISPER_REVISION = 3
_GELU = 3  # CTranslate2's ActivationType
_MULTILINGUAL_VOCAB_SIZE = 51865  # English-only models lack one token (openai/whisper, `model.py`, is_multilingual)
_NUM_TIMESTAMPS = 1501  # 0.00 s to 30.00 s in steps of 0.02 s

# Settings that hold for every Whisper. A file that says otherwise is another architecture, whatever its name.
_FIXED = {
    "decoder/activation": _GELU,
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
# Word alignment defaults of the decoder; generation_config.json carries the real alignment heads.
_IGNORED = ("decoder/alignment_heads", "decoder/alignment_layer")


class Model(NamedTuple):
    """What a `model.bin` holds: the name of its specification, its variables, and names that share a variable."""

    spec: str
    revision: int
    variables: dict[str, NDArray[Any]]
    aliases: dict[str, str]


def read_model(path: Path) -> Model:
    """Read a CTranslate2 `model.bin`; its arrays are views of the mapped file, nothing is copied.

    Raises:
        WeightsError: if the file is empty, cut short, of another version, holds a type that is not supported or
            bytes beyond its end.

    Source: CTranslate2 4.x, `python/ctranslate2/specs/model_spec.py`, `_serialize`.
    """
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            raise WeightsError(f"{path}: is empty")
        blob = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(path, blob)
    version = reader.number("I")
    if version != _VERSION:
        raise WeightsError(f"{path}: CTranslate2 file version {version}; this reader knows {_VERSION}")
    spec, revision = reader.text(), reader.number("I")
    variables = dict(reader.variable() for _ in range(reader.number("I")))
    aliases = {reader.text(): reader.text() for _ in range(reader.number("I"))}
    if reader.position != len(blob):
        raise WeightsError(f"{path}: {len(blob) - reader.position} bytes follow after the last variable")
    return Model(spec, revision, variables, aliases)


class _Reader:
    """A position in a CTranslate2 file that never runs past its end."""

    def __init__(self, path: Path, blob: mmap.mmap) -> None:
        self.path = path
        self.position = 0
        self._blob = blob

    def number(self, code: str) -> int:
        start = self._advance(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self._blob, start)[0]

    def text(self) -> str:
        length = self.number("H")
        start = self._advance(length)
        raw = self._blob[start : start + length]
        if not raw.endswith(b"\0"):
            raise WeightsError(f"{self.path}: the name at byte {start} has no end; this is not a CTranslate2 file")
        return raw[:-1].decode("utf-8", errors="replace")

    def variable(self) -> tuple[str, NDArray[Any]]:
        name = self.text()
        shape = [self.number("I") for _ in range(self.number("B"))]
        code, num_bytes = self.number("B"), self.number("I")
        if code not in _DTYPES:
            raise WeightsError(f"{self.path}: `{name}` has data type {code}; known are {sorted(_DTYPES)}")
        dtype = _DTYPES[code]
        if num_bytes != math.prod(shape) * dtype.itemsize:
            raise WeightsError(f"{self.path}: `{name}` of shape {shape} and type {dtype} cannot have {num_bytes} bytes")
        start = self._advance(num_bytes)
        return name, np.frombuffer(self._blob, dtype, count=math.prod(shape), offset=start).reshape(shape)

    def _advance(self, num_bytes: int) -> int:
        start, self.position = self.position, self.position + num_bytes
        if self.position > len(self._blob):
            raise WeightsError(f"{self.path}: ends at byte {len(self._blob)} in the middle of a value; it is cut short")
        return start


class _Variables:
    """Variables that are each taken once, with the shape they must have; what nobody takes is an error."""

    def __init__(self, path: Path, model: Model) -> None:
        self._path = path
        self._left = dict(model.variables)

    def take(self, name: str, *shape: int | None) -> NDArray[Any]:
        """Take one variable; None in `shape` stands for any size."""
        if name not in self._left:
            raise WeightsError(f"{self._path}: variable `{name}` is missing")
        found = self._left.pop(name)
        fits = len(found.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if not fits:
            wanted = ["any" if want is None else want for want in shape]
            raise WeightsError(f"{self._path}: variable `{name}` has shape {[*found.shape]}, not {wanted}")
        return found

    def count_layers(self, side: str) -> int:
        """Number of layers of `encoder` or `decoder`: those that are numbered without a gap."""
        count = 0
        while f"{side}/layer_{count}/ffn/linear_0/weight" in self._left:
            count += 1
        return count

    def finish(self) -> None:
        """Raise if anything is left: an unknown variable is a part of the model that would be lost."""
        if self._left:
            names = ", ".join(f"`{name}`" for name in sorted(self._left)[:5])
            raise WeightsError(f"{self._path}: {len(self._left)} variables no Whisper has: {names}")


def convert_whisper(source: Path, folder: Path) -> str:
    """Write a Whisper, encoder and decoder, as a folder that `from_pretrained` reads.

    Args:
        source: folder with model.bin, config.json, tokenizer.json and vocabulary.txt, as faster-whisper lays it out.
        folder: where to write; must exist.

    Returns:
        The dtype the weights are stored in: the file's own. config.json asks for float32 at load, as the Hub's does.

    Raises:
        WeightsError: if the model is not a Whisper in every variable and shape, or the tokenizer is not its own.
    """
    from safetensors.numpy import save_file
    from transformers import WhisperFeatureExtractor

    path = source / "model.bin"
    config, tensors = whisper_tensors(path)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ids = _save_tokenizer(source, folder, config.vocab_size)
    settings = read_json(source / "config.json")
    config.bos_token_id = config.eos_token_id = config.pad_token_id = ids["<|endoftext|>"]
    config.decoder_start_token_id = ids["<|startoftranscript|>"]
    config.suppress_tokens = settings["suppress_ids"]
    config.begin_suppress_tokens = settings["suppress_ids_begin"]
    config.save_pretrained(folder)
    _save_generation_config(settings, folder, config, ids)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    return str(tensors["model.encoder.conv1.weight"].dtype)


def whisper_tensors(path: Path) -> tuple[WhisperConfig, dict[str, NDArray[Any]]]:
    """Read a Whisper's configuration off its shapes, and its tensors under the names transformers gives them.

    Raises:
        WeightsError: if a variable is missing, unknown or of the wrong shape, or a setting is not Whisper's.
    """
    from transformers import WhisperConfig

    model = read_model(path)
    if (model.spec, model.revision) != ("WhisperSpec", _WHISPER_REVISION):
        raise WeightsError(f"{path}: holds `{model.spec}` revision {model.revision}, not WhisperSpec revision 3")
    # The output layer shares the token embeddings in every Whisper, and transformers ties it again at load.
    if model.aliases != {"decoder/projection/weight": "decoder/embeddings/weight"}:
        raise WeightsError(f"{path}: the output layer does not share the token embeddings: aliases {model.aliases}")
    variables = _Variables(path, model)
    for name, value in _FIXED.items():
        if (found := int(variables.take(name))) != value:
            raise WeightsError(f"{path}: `{name}` is {found}; a Whisper has {value}")
    for name in _IGNORED:
        variables.take(name)

    embeddings = variables.take("decoder/embeddings/weight", None, None)
    vocab_size, width = embeddings.shape
    conv1 = variables.take("encoder/conv1/weight", width, None, 3)
    sizes = {side: _layer_sizes(model, variables, side) for side in ("encoder", "decoder")}
    tensors = {
        "model.encoder.conv1.weight": conv1,
        "model.encoder.conv1.bias": variables.take("encoder/conv1/bias", width),
        "model.encoder.conv2.weight": variables.take("encoder/conv2/weight", width, width, 3),
        "model.encoder.conv2.bias": variables.take("encoder/conv2/bias", width),
        "model.decoder.embed_tokens.weight": embeddings,
    }
    positions = {}
    for side, (num_layers, ffn_dim) in sizes.items():
        positions[side] = variables.take(f"{side}/position_encodings/encodings", None, width)
        tensors[f"model.{side}.embed_positions.weight"] = positions[side]
        tensors |= _take_norm(variables, f"{side}/layer_norm", f"model.{side}.layer_norm", width)
        for layer in range(num_layers):
            tensors |= _take_layer(variables, side, layer, width, ffn_dim)
    config = WhisperConfig(
        architectures=["WhisperForConditionalGeneration"],
        vocab_size=vocab_size,
        num_mel_bins=conv1.shape[1],
        d_model=width,
        encoder_layers=sizes["encoder"][0],
        encoder_ffn_dim=sizes["encoder"][1],
        encoder_attention_heads=int(variables.take("encoder/num_heads")),
        decoder_layers=sizes["decoder"][0],
        decoder_ffn_dim=sizes["decoder"][1],
        decoder_attention_heads=int(variables.take("decoder/num_heads")),
        max_source_positions=positions["encoder"].shape[0],
        max_target_positions=positions["decoder"].shape[0],
        dtype="float32",
    )
    variables.finish()
    return config, tensors


def _layer_sizes(model: Model, variables: _Variables, side: str) -> tuple[int, int]:
    num_layers = variables.count_layers(side)
    if num_layers == 0:
        return 0, 0
    return num_layers, model.variables[f"{side}/layer_0/ffn/linear_0/weight"].shape[0]


def _take_layer(variables: _Variables, side: str, layer: int, width: int, ffn_dim: int) -> dict[str, NDArray[Any]]:
    theirs, ours = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
    own = f"{theirs}/self_attention"
    tensors = _take_norm(variables, f"{own}/layer_norm", f"{ours}.self_attn_layer_norm", width)
    tensors |= _take_stacked(variables, f"{own}/linear_0", f"{ours}.self_attn", "qkv", width)
    tensors |= _take_linear(variables, f"{own}/linear_1", f"{ours}.self_attn.out_proj", width, width)
    if side == "decoder":
        cross = f"{theirs}/attention"
        tensors |= _take_norm(variables, f"{cross}/layer_norm", f"{ours}.encoder_attn_layer_norm", width)
        tensors |= _take_stacked(variables, f"{cross}/linear_0", f"{ours}.encoder_attn", "q", width)
        tensors |= _take_stacked(variables, f"{cross}/linear_1", f"{ours}.encoder_attn", "kv", width)
        tensors |= _take_linear(variables, f"{cross}/linear_2", f"{ours}.encoder_attn.out_proj", width, width)
    tensors |= _take_norm(variables, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", width)
    tensors |= _take_linear(variables, f"{theirs}/ffn/linear_0", f"{ours}.fc1", ffn_dim, width)
    tensors |= _take_linear(variables, f"{theirs}/ffn/linear_1", f"{ours}.fc2", width, ffn_dim)
    return tensors


def _take_norm(variables: _Variables, theirs: str, ours: str, width: int) -> dict[str, NDArray[Any]]:
    return {
        f"{ours}.weight": variables.take(f"{theirs}/gamma", width),
        f"{ours}.bias": variables.take(f"{theirs}/beta", width),
    }


def _take_linear(
    variables: _Variables, theirs: str, ours: str, num_outputs: int, num_inputs: int
) -> dict[str, NDArray[Any]]:
    return {
        f"{ours}.weight": variables.take(f"{theirs}/weight", num_outputs, num_inputs),
        f"{ours}.bias": variables.take(f"{theirs}/bias", num_outputs),
    }


def _take_stacked(
    variables: _Variables, theirs: str, ours: str, projections: str, width: int
) -> dict[str, NDArray[Any]]:
    """Split projections that CTranslate2 stacks on rows; the key's bias, which Whisper lacks, must be zeros."""
    stacked = _take_linear(variables, theirs, "stacked", len(projections) * width, width)
    tensors = {}
    for number, projection in enumerate(projections):
        rows = slice(number * width, (number + 1) * width)
        tensors[f"{ours}.{projection}_proj.weight"] = stacked["stacked.weight"][rows]
        bias = stacked["stacked.bias"][rows]
        if projection != "k":
            tensors[f"{ours}.{projection}_proj.bias"] = bias
        elif bias.any():
            raise WeightsError(f"`{theirs}` has a bias for keys, which a Whisper has not")
    return tensors


def _save_tokenizer(source: Path, folder: Path, vocab_size: int) -> dict[str, int]:
    """Write the tokenizer with Whisper's special and timestamp tokens; return the id of each of its tokens."""
    from transformers import AddedToken, WhisperTokenizer

    tokens = (source / "vocabulary.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if len(tokens) != vocab_size:
        raise WeightsError(f"{source / 'vocabulary.txt'}: {len(tokens)} tokens, but the model has {vocab_size}")
    tokenizer = WhisperTokenizer.from_pretrained(source)
    first_timestamp = vocab_size - _NUM_TIMESTAMPS
    first_special = tokens.index("<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": tokens[first_special:first_timestamp]})
    # Not special, as on the Hub: a transcript with timestamps shows them.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens[first_timestamp:]])
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = 1024
    ids = tokenizer.get_vocab()
    strangers = [token for number, token in enumerate(tokens) if ids.get(token) != number]
    if strangers:
        raise WeightsError(f"{source}: tokenizer.json and vocabulary.txt disagree about {strangers[:5]}")
    tokenizer.save_pretrained(folder)
    return ids


def _save_generation_config(settings: dict[str, Any], folder: Path, config: WhisperConfig, ids: dict[str, int]) -> None:
    """Write what generation needs: ids to suppress, alignment heads, and language and task where there is a choice."""
    from transformers import GenerationConfig

    names = {number: token for token, number in ids.items()}
    start, translate = ids["<|startoftranscript|>"], ids["<|translate|>"]
    is_multilingual = config.vocab_size >= _MULTILINGUAL_VOCAB_SIZE
    multilingual = {
        "lang_to_id": {names[number]: number for number in range(start + 1, translate)},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": translate},
    }
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        max_length=config.max_target_positions,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        is_multilingual=is_multilingual,
        max_initial_timestamp_index=50,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        return_timestamps=False,
        **(multilingual if is_multilingual else {}),
    ).save_pretrained(folder)
