"""``sonde info``: what a file holds, from its header alone."""

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import tyro

from sonde.cli.console import say, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError, StateError


@dataclass(frozen=True)
class Info:
    """Describe a fitted state, a store of rows or a report, from its header alone.

    Example: sonde info probe.sonde
    """

    file: Annotated[
        tyro.conf.Positional[Path],
        named("FILE", "a .sonde file, a report, or a folder of sonde read"),
    ]
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Print the header."""
        facts = describe(self.file)
        if self.printing.json:
            say_json(facts)
        else:
            say("\n".join(_lines(name, value) for name, value in facts.items()))
        return 0


def describe(path: Path) -> dict[str, Any]:
    """Return the facts of a file as JSON values.

    Raises
    ------
    InputError
        If there is no such file, or it is of a kind that sonde does not write.
    """
    if not path.exists():
        raise InputError(f"info: there is no file {path}.")
    if path.is_dir():
        from sonde.store import describe_store

        return describe_store(path)
    if path.suffix == ".sonde":
        return _state(path)
    if path.suffix in (".json", ".html"):
        from sonde.report import load_report

        report = load_report(path)
        return {
            "kind": "report",
            "schema": report["schema"],
            "verdict": report["verdict"],
            "model": report["provenance"]["model"]["name"],
            "data": report["provenance"]["data"]["name"],
            "n_sites": len(report["sites"]),
            "size_bytes": path.stat().st_size,
        }
    raise InputError(f"info: expected a .sonde file, a store or a report, got {path}.")


def _state(path: Path) -> dict[str, Any]:
    from sonde.core.statefile import read_header

    header = read_header(path)
    entries = header.get("entries", [])
    units = header.get("units", [])
    try:
        return _facts(header, entries, units, path)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"info: the header of {path} is not one of ours: {error!r}.") from error


def _facts(header: dict[str, Any], entries: Any, units: Any, path: Path) -> dict[str, Any]:
    return {
        "kind": "fitted state",
        "version": header.get("version"),
        "methods": sorted({e["instrument"] for e in entries}),
        "n_results": len(entries),
        "sites": [s["text"] for s in header.get("sites", [])],
        "model": header.get("model"),
        "data": header.get("data"),
        "n_units": sum(b - a + 1 for e in units for a, b in e["units"]) if units else 0,
        "units": units,
        "counters": header.get("counters"),
        "size_bytes": path.stat().st_size,
    }


def _lines(name: str, value: Any) -> str:
    """Return a name and its value, broken at 80 columns."""
    return "\n".join(
        wrap(_text(value), 80, initial_indent=f"{name:<14} ", subsequent_indent=" " * 15) or [name]
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return str(value)
