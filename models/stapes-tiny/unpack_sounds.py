"""Write as files the sounds that three Debian packages hold in archives, for make_more_sounds.py.

    python models/stapes-tiny/unpack_sounds.py PACKAGES

PACKAGES holds 0ad-data (a ZIP archive), openttd-opensfx (a sample catalogue of Transport Tycoon) and openclonk-data
(Clonk's groups), see there. The files go into `extracted` beside each archive.
"""

from __future__ import annotations

import gzip
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_SUFFIXES = (".ogg", ".wav")
# Of a Clonk group: head and entry of a file in it, in bytes.
_HEAD, _ENTRY = 204, 316


def main(packages: Path) -> None:
    """Unpack all three."""
    archives = [(path, _zip(path)) for path in sorted(packages.glob("**/0ad/mods/public/public.zip"))]
    archives += [(path, _catalogue(path.read_bytes())) for path in sorted(packages.glob("**/opensfx.cat"))]
    groups = sorted(packages.glob("**/openclonk/*.oc[dg]"))
    archives += [(path, _group(_ungzip(path.read_bytes()))) for path in groups if path.is_file()]
    for path, sounds in archives:
        count = 0
        for name, content in sounds:
            target = path.parent / "extracted" / path.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            count += 1
        print(f"{path.name}: {count} sounds")


def _zip(path: Path) -> Iterator[tuple[str, bytes]]:
    """List the sounds of a ZIP archive."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).suffix in _SUFFIXES:
                yield name, archive.read(name)


def _catalogue(content: bytes) -> Iterator[tuple[str, bytes]]:
    """List a sample catalogue: (offset, length) of each, in whose place a name stands before the WAV file."""
    count = (struct.unpack("<I", content[:4])[0] & 0x7FFFFFFF) // 8
    for number in range(count):
        at, length = struct.unpack("<II", content[8 * number :][:8])
        at &= 0x7FFFFFFF
        yield f"sfx{number:02d}.wav", content[at + 1 + content[at] :][:length]


def _group(content: bytes, folder: str = "") -> Iterator[tuple[str, bytes]]:
    """List the sounds of a Clonk group and of the groups in it."""
    (count,) = struct.unpack("<i", _unscrambled(content[:_HEAD])[36:40])
    base = _HEAD + _ENTRY * count
    for number in range(count):
        entry = content[_HEAD + _ENTRY * number :][:_ENTRY]
        name = folder + entry[:260].split(b"\0")[0].decode("latin-1")
        _, is_group, size, _, at = struct.unpack("<5i", entry[260:280])
        found = content[base + at :][:size]
        if is_group:
            yield from _group(found, f"{name}/")
        elif PurePosixPath(name.lower()).suffix in _SUFFIXES:
            yield name, found


def _unscrambled(head: bytes) -> bytes:
    """Undo what Clonk does to a group's head: each byte XOR 237, then the first and third of each three swapped."""
    plain = bytearray(byte ^ 237 for byte in head)
    for at in range(0, len(plain) - 2, 3):
        plain[at], plain[at + 2] = plain[at + 2], plain[at]
    return bytes(plain)


def _ungzip(content: bytes) -> bytes:
    """Undo gzip, under its own mark or Clonk's."""
    return gzip.decompress(b"\x1f\x8b" + content[2:]) if content[:2] in (b"\x1e\x8c", b"\x1f\x8b") else content


if __name__ == "__main__":
    main(Path(sys.argv[1]))
