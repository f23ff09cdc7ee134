"""The documents of all commands but ``scan``, built from their JSON and written to files."""

from importlib import import_module
from pathlib import Path
from typing import Any, Final

from sonde.core.errors import InputError, SondeError
from sonde.files.durable import atomic_write
from sonde.files.places import to_path
from sonde.report.document import Document
from sonde.report.document_page import document_page
from sonde.report.document_text import COLUMNS, document_text
from sonde.report.files import carried, sealed_json, sealed_page

ENDINGS: Final = (".html", ".htm", ".json")
KINDS: Final = {
    "sonde-charts/1": ("charts of a fitted state", "charts"),
    "sonde-diff/1": ("difference of two scans", None),
    "sonde-compare/1": ("comparison of two models", "compare"),
    "sonde-compress/1": ("compression of a model", "compress"),
    "sonde-train/1": ("fine-tuning of a model", "train"),
    "sonde-compress-search/1": ("search over sizes of a model", "compress_search"),
    "sonde-drift/1": ("drift", "drift"),
    "sonde-edit/1": ("change of a model", "edit"),
    "sonde-explain/1": ("explanation", "explain"),
    "sonde-evaluate/1": ("evaluation", "evaluate"),
    "sonde-recipe/1": ("answer of a recipe", "answer"),
    "sonde-scores/1": ("page of scores", None),
    "sonde-trace/1": ("trace of pairs of texts", "trace"),
    "sonde-track/1": ("measures over a training run", "track"),
    "sonde-units/1": ("atlas of units", "units"),
}
"""By schema: a description, and the module whose ``document`` reads its JSON, if there is one."""
UNSEALED: Final = {
    "schema", "level", "correction", "moved", "identical", "rows", "same_model", "first", "second",
    "notes", "sites", "comparisons", "left_out", "direction", "states",
}  # fmt: skip
"""The keys of a drift, which earlier sondes wrote without a hash."""


def document_of(found: dict[str, Any], **shown: Any) -> Document:
    """Return the document that a command's JSON describes.

    Parameters
    ----------
    found : dict
        With a ``schema`` of ``KINDS``.
    **shown
        What a page shows beside it, such as the inputs of an explanation.
    """
    home = KINDS[found["schema"]][1]
    return import_module(f"sonde.report.{home}").document(found, **shown)


def to_page(found: dict[str, Any], **shown: Any) -> str:
    """Return the JSON of a command as a self-contained page."""
    return document_page(document_of(found, **shown), found)


def to_terminal(
    found: dict[str, Any],
    *,
    verbose: bool = False,
    quiet: bool = False,
    width: int = COLUMNS,
    room: int = COLUMNS,
    **shown: Any,
) -> str:
    """Return the JSON of a command as text; with ``quiet`` only its verdict."""
    document = document_of(found, **shown)
    return document.verdict if quiet else document_text(document, verbose, width, room)


def save_document(found: dict[str, Any], path: str | Path, **shown: Any) -> Path:
    """Write the JSON of a command as a page (``.html``) or as JSON, by the name's ending.

    Parameters
    ----------
    found : dict[str, Any]
        Document of a command.
    path : str | Path
        File to write, ending in ``.html`` or ``.json``.
    **shown
        Inputs that the page shows beside the document; none if None.

    Raises
    ------
    InputError
        If the name ends otherwise.
    """
    path = to_path(path)
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise InputError(
            f"save_document: expected a name that ends in .html or .json, got {str(path)!r}."
        )
    sealed = sealed_json(found) if kind == ".json" else sealed_page(to_page(found, **shown))
    atomic_write(path, sealed.encode())
    return path


def other_page(path: str | Path) -> dict[str, Any] | None:
    """Return the contents of another command's page or JSON, or None for other files."""
    try:
        content = carried(path)
    except SondeError:
        return None
    schema = content.get("schema") if isinstance(content, dict) else None
    return content if isinstance(schema, str) and schema in KINDS else None


def describe_page(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Return facts of a page or JSON file: its plain values, and the length of each list."""
    plain = {k: v for k, v in found.items() if isinstance(v, str | int | float)}
    lists = {f"n_{k}": len(v) for k, v in found.items() if isinstance(v, list)}
    plain.pop("hash", None)
    return {"kind": KINDS[found["schema"]][0], **plain, **lists, "size_bytes": path.stat().st_size}
