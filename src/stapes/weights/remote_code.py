"""Models whose code lies with their weights: run only once someone has read and allowed it.

What is allowed is a certain code, by its digest, on this machine; a folder from elsewhere cannot allow its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..files import read_json, write_json
from .resolve import cache_folder, resolve

_LOADED: dict[str, str] = {}
"""Architecture: digest of the code that defines it in this process."""


def allow_code(name: str) -> None:
    """Allow the code that lies with the weights `name`, as it is now, to run on this machine; run nothing yet.

    Raises:
        WeightsError: if the weights cannot be found.
    """
    folder = resolve(name)
    if _code_of(folder):
        write_json(_list_path(), {**_allowed(), _digest(folder): {"name": name}})


def admit_code(name: str) -> None:
    """Let transformers know the architecture of an LLM that it does not have itself, if its code is allowed.

    Nothing happens if transformers has the architecture, or no code lies with the weights.

    Raises:
        WeightsError: if the code is not allowed, lies elsewhere or cannot be used.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    folder = resolve(name)
    config = read_json(folder / "config.json")
    kind, auto_map = config.get("model_type"), config.get("auto_map") or {}
    if not auto_map or (kind in CONFIG_MAPPING and kind not in _LOADED):
        return
    classes = {role: str(auto_map.get(role)) for role in ("AutoConfig", "AutoModelForCausalLM")}
    for role, path in classes.items():
        if "--" in path or f"{path.partition('.')[0]}.py" not in _code_of(folder):
            raise WeightsError(
                f"{name}: is a `{kind}` model, of which transformers has no code, and its {role} ({path}) does not lie "
                "with the weights; put that file beside them"
            )
    digest = _digest(folder)
    if digest not in _allowed():
        raise WeightsError(
            f"{name}: is a `{kind}` model, whose code lies with its weights ({', '.join(_code_of(folder))}) and would "
            "run on this machine; read it, then allow it with `model.trust_remote_code: true` in the recipe"
        )
    if _LOADED.get(kind, digest) != digest:
        raise WeightsError(f"{name}: other code for `{kind}` models has been loaded already; start stapes anew")
    if kind not in _LOADED:
        try:
            loaded: Any = [get_class_from_dynamic_module(path, str(folder)) for path in classes.values()]
            AutoConfig.register(kind, loaded[0])
            AutoModelForCausalLM.register(*loaded)
        except (ImportError, AttributeError, SyntaxError, ValueError) as error:
            raise WeightsError(f"{name}: the code that lies with its weights cannot be used: {error}") from error
        _LOADED[kind] = digest


def _code_of(folder: Path) -> list[str]:
    # In folders below it, too: `auto_map` and imports reach those.
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _code_of(folder):
        content = (folder / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _list_path() -> Path:
    return cache_folder() / "allowed_code.json"


def _allowed() -> dict[str, Any]:
    return read_json(_list_path()) if _list_path().exists() else {}
