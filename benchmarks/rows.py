"""One row of the table for each budget, and the table as text and JSON."""

import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sonde", "torch", "transformers", "numpy", "scipy", "scikit-learn")
HEADER = ("what", "measured", "budget", "spread", "", "note")


@dataclass(frozen=True)
class Row:
    """One figure; less is better everywhere.

    Parameters
    ----------
    name : str
        The benchmark, as ``--only`` takes it.
    what : str
    value : float
        NaN where it could not be measured; ``note`` says why.
    unit : str
        ``x`` for ratios.
    budget : float or None
        None for figures that are shown without a promise.
    spread : float
        Of the repeated base, in the unit of the value.
    rounds : int
    note : str
    """

    name: str
    what: str
    value: float
    unit: str = "x"
    budget: float | None = None
    spread: float = 0.0
    rounds: int = 1
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return ``ok``, ``slow``, ``not measured``, or nothing without a budget."""
        if math.isnan(self.value):
            return "not measured"
        if self.budget is None:
            return ""
        return "ok" if self.value <= self.budget + self.spread else "over"

    @property
    def is_within(self) -> bool:
        """Whether ``--check`` lets the row pass."""
        return self.verdict in ("ok", "")


def not_measured(name: str, what: str, why: str) -> Row:
    """Return the row of a figure that could not be had here."""
    return Row(name, what, math.nan, note=why)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER) - 1)]
    shown = []
    for line in lines:
        cells = [
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(_zip(line, widths))
        ]
        shown.append("  ".join([*cells, line[-1]]).rstrip())
    return "\n".join([shown[0], "-" * min(100, len(shown[0]) + 40), *shown[1:]])


def line(row: Row) -> str:
    """Return one row as a line of its own, for a benchmark that is still running."""
    _, value, budget, _, verdict, note = _cells(row)
    parts = [row.what, value, budget and f"budget {budget}", verdict, note]
    return "  " + ", ".join(filter(None, parts))


def _zip(line: Sequence[str], widths: Sequence[int]) -> Iterable[tuple[str, int]]:
    return zip(line[:-1], widths, strict=True)


def _cells(row: Row) -> tuple[str, ...]:
    budget = "" if row.budget is None else number(row.budget, row.unit)
    spread = number(row.spread, row.unit) if row.spread else ""
    value = "-" if math.isnan(row.value) else number(row.value, row.unit)
    return row.what, value, budget, spread, row.verdict, row.note


def number(value: float, unit: str) -> str:
    """Return a figure with its unit."""
    if unit == "x":
        return f"{value:.3f} x"
    if not unit:
        return f"{value:.1e}"
    digits = {"s": 3, "CKA": 6}.get(unit, 1)
    return f"{value:.{digits}f} {unit}"


def versions() -> dict[str, str]:
    """Return the versions and the machine that the figures belong to."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found["processor"] = _processor()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | _gpus()


def _gpus() -> dict[str, str]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"gpu": ", ".join(names)} if names else {}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def as_json(rows: Sequence[Row], tiny: bool, about: dict[str, str]) -> dict[str, Any]:
    """Return everything for machines; figures that could not be had are null."""
    found = []
    for row in rows:
        entry = asdict(row) | {"verdict": row.verdict}
        found.append(entry | ({"value": None} if math.isnan(row.value) else {}))
    return {"schema": "sonde-benchmarks/1", "tiny": tiny, "versions": about, "rows": found}
