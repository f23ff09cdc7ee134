"""``patch.json``: written with a hash, and read as untrusted input."""

import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sonde.core.errors import StoreError, reason_of
from sonde.data._checkpoints import json_object
from sonde.files.durable import atomic_write

FORMAT = "sonde patch 2"
TOLD = "patch.json"
_HASH = re.compile(r"[0-9a-f]{64}\Z")


def write_told(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``patch.json`` with its format and a hash of its content."""
    facts = {"format": FORMAT, **facts}
    text = json.dumps({**facts, "seal": _seal(facts)}, indent=2, ensure_ascii=False)
    atomic_write(folder / TOLD, (text + "\n").encode())


def read_told(folder: Path) -> dict[str, Any]:
    """Return the verified content of ``patch.json``: of an edit, or of a merge (``sources``).

    Raises
    ------
    StoreError
        If it is missing, not whole, or names a file outside the model's folder.
    """
    try:
        facts = json_object(folder / TOLD)
        if facts.get("format") != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}")
        if facts.pop("seal", None) != _seal(facts):
            raise ValueError("it was changed after it was written")
        for key, is_right in (_MERGE if "sources" in facts else _EDIT).items():
            if key not in facts or not is_right(facts[key]):
                raise ValueError(f"{key!r} is missing or has a wrong type")
        if not facts.get("after", {}).keys() <= facts.get("before", {}).keys():
            raise ValueError("'before' lacks files that the edited model has")
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"cannot read the patch {folder}: {reason_of(error)}. Take it from a backup."
        ) from None
    return facts


def _seal(told: Mapping[str, Any]) -> str:
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.match(value) is not None


def _is_file(name: str) -> bool:
    """Return whether a relative path stays inside its folder, on any system."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and "/".join(parts) == name and "\0" not in name and "\\" not in name
    return plain and ".." not in parts and not PureWindowsPath(name).anchor and parts[0] != "/"


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_file(k) and _is_hash(v) for k, v in value.items())


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_mapping, value.values()))


def _are_sources(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and _is_text(one.get("model")) and _are_files(one.get("files"))
        for one in value
    )


_MERGE: dict[str, Callable[[Any], bool]] = {"method": _is_text, "sources": _are_sources}
_EDIT: dict[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "method": _is_text,
    "config": _is_mapping,
    "tensors": _are_tensors,
    "before": _are_files,
    "after": _are_files,
    "kept": _is_hash,
}
