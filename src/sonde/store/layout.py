"""Layout of a store on disk: file names, and hashes of files.

A store is a folder with ``store.json``, and for each committed range of units one file per table
under ``rows/`` and one record under ``ranges/``, written last. The table ``examples`` has a row for
each example; every other table holds the rows of the sites that share one layout. Sites added later
are stores of their own below ``sites/``, further data sets below ``data/``; the manifest counts
those that are whole.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from sonde.core.errors import StoreError, reason_of
from sonde.core.state import canonical_json

MANIFEST: Final = "store.json"
ROWS: Final = "rows"
RANGES: Final = "ranges"
EXAMPLES: Final = "examples"
GROUPS: Final = "groups.arrow"
HEAD: Final = "head.safetensors"
SITES: Final = "sites"
DATA: Final = "data"
FORMAT: Final = "sonde-store"
VERSION: Final = 1
AGAIN: Final = "Run the command that wrote it again."
REPAIR: Final = "Run `sonde verify --repair` on the store, then the command that wrote it."
MAX_JSON_BYTES: Final = 64 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in an untrusted JSON file.

    Raises
    ------
    StoreError
        If it is missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StoreError(f"Store: {path} is larger than {MAX_JSON_BYTES} bytes.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"Store: expected a JSON file at {path}: {reason_of(error)}.") from error
    if not isinstance(content, dict):
        raise StoreError(f"Store: expected a JSON object at {path}.")
    return content


def sealed(content: dict[str, Any]) -> bytes:
    """Return the canonical JSON of a manifest or record, including a hash of its content."""
    rest = {name: value for name, value in content.items() if name != "hash"}
    digest = hashlib.blake2b(canonical_json(rest).encode(), digest_size=16).hexdigest()
    return (canonical_json({**rest, "hash": digest}) + "\n").encode()


def is_sealed(path: Path, content: dict[str, Any]) -> bool:
    """Return whether a file equals the sealed JSON of its ``content``."""
    try:
        return path.read_bytes() == sealed(content)
    except ValueError:
        return False


def side_file(directory: Path, name: str, files: dict[str, Any]) -> bytes:
    """Return the bytes of a file beside the manifest, checked by the manifest's hash.

    Raises
    ------
    StoreError
        If the file is missing or has other bytes.
    """
    path = directory / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"Store: {path} is missing or cannot be read: {error}.") from error
    if hashlib.blake2b(content, digest_size=16).hexdigest() != files.get(name):
        raise StoreError(f"Store: the bytes of {path} differ from those that were committed.")
    return content


def row_file(directory: Path, table: str, span: tuple[int, int]) -> Path:
    """Return the path of a table's file for a range of units."""
    return directory / ROWS / table / f"{span[0]}-{span[1]}.arrow"


def record_file(directory: Path, span: tuple[int, int]) -> Path:
    """Return the path of the record that commits a range of units."""
    return directory / RANGES / f"{span[0]}-{span[1]}.json"
