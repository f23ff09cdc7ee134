"""Reports on disk: HTML or JSON, by the ending of the file's name."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

from sonde.core.errors import InputError, StateError, StoreError
from sonde.files.durable import atomic_write
from sonde.files.places import to_path
from sonde.report._schema import check_report
from sonde.report.html import to_html

MAX_FILE_BYTES: Final = 64_000_000

_EMBEDDED: Final = re.compile(r'<script type="application/json" id="sonde">([^<]*)</script>')


def load_report(path: str | Path) -> dict[str, Any]:
    """Return the JSON of a report from a ``.json`` or an ``.html`` file.

    The file is not trusted: its size is limited, an HTML page is only searched for the JSON that it
    carries, and every key that is read has the type that the schema names.

    Parameters
    ----------
    path : path
        What ``save_report`` or ``sonde scan`` wrote.

    Raises
    ------
    StoreError
        If the file cannot be read, is too large, or is neither JSON nor such a page.
    StateError
        If what it holds is not a report.
    """
    report = carried(path)
    try:
        check_report(report, strict=False)
    except RecursionError as error:
        raise StateError(
            f"load_report: expected a report, got JSON that is nested too deeply in {path}."
        ) from error
    except StateError as error:
        error.add_note(f"in {path}")
        raise
    report.pop("hash", None)
    return report


def carried(path: str | Path) -> Any:
    """Return the JSON of a file, or the JSON embedded in a page, of any schema.

    Raises
    ------
    StoreError
        If the file cannot be read, is too large, or is neither JSON nor such a page.
    """
    text = _read(to_path(path))
    if text.lstrip()[:1] == "<":
        match = _EMBEDDED.search(text)
        if match is None:
            raise StoreError(
                "load_report: expected an HTML page that contains the JSON of a scan, got a "
                f"page without it: {path}. Give a report that sonde wrote."
            )
        text = match[1]
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"load_report: expected JSON, got {path}: {error}.") from error


def save_report(report: dict[str, Any], path: str | Path) -> Path:
    """Write a report as a page or as JSON, by the name's ending; never a partial file.

    Parameters
    ----------
    report : dict
        JSON of a scan.
    path : path
        Ends in ``.html``, ``.htm`` or ``.json``. An older file is replaced.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    InputError
        If the name ends otherwise.
    StoreError
        If the file cannot be written.
    """
    path = to_path(path)
    kind = path.suffix.lower()
    if kind not in {".html", ".htm", ".json"}:
        raise InputError(
            f"save_report: expected a name that ends in .html or .json, got {str(path)!r}."
        )
    text = sealed_json(report) if kind == ".json" else sealed_page(to_html(report))
    atomic_write(path, text.encode())
    return path


def sealed_json(report: dict[str, Any]) -> str:
    """Return the report as JSON text whose last key is a hash of the rest."""
    return to_json({**report, "hash": _hash(to_json(report))})


def sealed_page(text: str) -> str:
    """Return a page that ends in a comment with the hash of everything before it."""
    return f"{text}<!-- sonde {_hash(text)} -->\n"


def is_sealed(path: Path) -> bool | None:
    """Return whether a report is unchanged since it was written, or None without a hash.

    Raises
    ------
    StoreError
        If it cannot be read.
    """
    text = _read(path)
    if text.lstrip()[:1] == "<":
        page, mark, _ = text.rpartition("<!-- sonde ")
        if mark:
            return sealed_page(page) == text
        return None if text.rstrip().endswith("</html>") else False
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            return False
        if "hash" not in content:
            return None if to_json(content) == text else False
        content.pop("hash")
        return sealed_json(content) == text
    except (ValueError, RecursionError):
        return False


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def to_json(report: dict[str, Any]) -> str:
    """Return the report as JSON text with a fixed layout; NaN or infinity is an error.

    Parameters
    ----------
    report : dict[str, Any]
        Document of a scan.
    """
    return json.dumps(report, allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StoreError(f"load_report: cannot read {path}: {error.strerror or error}.") from error
    if len(raw) > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES // 1_000_000} MB"
        raise StoreError(f"load_report: expected at most {limit}, got a larger file {path}.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StoreError(
            f"load_report: expected text in UTF-8, got {path}: {error.reason}."
        ) from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
