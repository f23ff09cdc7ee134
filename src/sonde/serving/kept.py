"""The file beside the traffic with its changes and the counts of feedback, under a checksum."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sonde.core.errors import StoreError, reason_of
from sonde.files.seal import BLANK, is_sealed, sealed_file

NAME = "changes.json"


def write_kept(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace the file of a replica at once.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    with sealed_file(folder / NAME) as file:
        file.write(json.dumps({**content, "hash": BLANK}).encode())


def read_kept(folder: Path) -> dict[str, Any] | None:
    """Return the content of a replica's file, or None if there is no file.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read: {reason_of(error)}.") from None
    if not is_sealed(path) or not isinstance(content, dict):
        raise StoreError(f"{path} is damaged: its checksum is not that of its content.")
    return content
