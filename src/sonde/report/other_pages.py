"""Pages and JSON of commands other than ``scan``: which command wrote them, and what they hold."""

from pathlib import Path
from typing import Any, Final

from sonde.core.errors import SondeError
from sonde.report.files import carried

KINDS: Final = {
    "sonde-charts/1": "charts of a fitted state",
    "sonde-diff/1": "difference of two scans",
    "sonde-compare/1": "comparison of two models",
    "sonde-compress/1": "compression of a model",
    "sonde-train/1": "fine-tuning of a model",
    "sonde-compress-search/1": "search over sizes of a model",
    "sonde-drift/1": "drift",
    "sonde-edit/1": "change of a model",
    "sonde-explain/1": "explanation",
    "sonde-evaluate/1": "evaluation",
    "sonde-recipe/1": "answer of a recipe",
    "sonde-scores/1": "page of scores",
    "sonde-trace/1": "trace of pairs of texts",
    "sonde-track/1": "measures over a training",
}
UNSEALED: Final = {
    "schema", "level", "correction", "moved", "identical", "rows", "same_model", "first", "second",
    "notes", "sites", "comparisons", "left_out", "direction", "states",
}  # fmt: skip
"""The keys of a drift, which earlier sondes wrote without a hash."""


def other_page(path: str | Path) -> dict[str, Any] | None:
    """Return what a page or JSON of another command holds, or None if the file is neither."""
    try:
        found = carried(path)
    except SondeError:
        return None
    schema = found.get("schema") if isinstance(found, dict) else None
    return found if isinstance(schema, str) and schema in KINDS else None


def describe_page(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of such a file as JSON values: what is plain, and how long each list is."""
    plain = {k: v for k, v in found.items() if isinstance(v, str | int | float)}
    lists = {f"n_{k}": len(v) for k, v in found.items() if isinstance(v, list)}
    plain.pop("hash", None)
    return {"kind": KINDS[found["schema"]], **plain, **lists, "size_bytes": path.stat().st_size}
