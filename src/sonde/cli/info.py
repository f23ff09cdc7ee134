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
            say(_text(facts))
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


def _text(facts: dict[str, Any]) -> str:
    """Return the facts for people: one line each, broken at 80 columns."""
    words = _state_words(facts) if facts["kind"] == "fitted state" else _plain_words(facts)
    return "\n".join(_lines(name, value) for name, value in words.items() if value)


def _state_words(facts: dict[str, Any]) -> dict[str, str]:
    """Return what a fitted state is, without fingerprints and raw lists."""
    data, counters = facts["data"] or {}, facts["counters"] or {}
    dropped = [k.partition("|")[2] for k, v in counters.items() if k.startswith("nonfinite|") and v]
    groups = f" in {data.get('n_groups'):,} groups" if data.get("grouped") else ""
    model, n_units = facts["model"] or {}, facts["n_units"]
    units = "1 unit" if n_units == 1 else f"{n_units:,} units"
    return {
        "kind": f"fitted state, version {facts['version']}, {_size(facts['size_bytes'])}",
        "methods": ", ".join(facts["methods"]),
        "sites": f"{len(facts['sites'])}: {', '.join(facts['sites'])}",
        "data": f"{data.get('n_examples', 0):,} examples{groups}, {units}",
        "not finite": f"rows were left out at {', '.join(dropped)}" if dropped else "",
        "model": " ".join(filter(None, (_short(model.get("model")), model.get("dtype")))),
        "more": "--json prints fingerprints, plans and counts",
    }


def _plain_words(facts: dict[str, Any]) -> dict[str, str]:
    """Return facts as they are, sizes and nested ones in words."""
    words: dict[str, str] = {}
    for name, value in facts.items():
        if name == "size_bytes":
            words["size"] = _size(value)
        elif isinstance(value, dict):
            words[name] = ", ".join(f"{_word(v)} {k.replace('_', ' ')}" for k, v in value.items())
        elif isinstance(value, list):
            words[name] = ", ".join(map(_word, value))
        else:
            words[name.removeprefix("n_").replace("_", " ")] = _word(value)
    return words


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k}={_word(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " ".join(map(_word, value))
    return "" if value is None else str(value)


def _short(fingerprint: str | None) -> str:
    return "" if fingerprint is None else f"fingerprint {fingerprint[:12]}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.0f} KiB"


def _lines(name: str, value: str) -> str:
    """Return a name and its value, broken at 80 columns."""
    return "\n".join(wrap(value, 80, initial_indent=f"{name:<14} ", subsequent_indent=" " * 15))
