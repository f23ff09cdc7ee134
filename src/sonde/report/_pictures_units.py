"""Sizes of the units of each site, and the few units that findings name."""

from typing import Any

from sonde.core.chart import Chart, ChartAxis, curves, marks, overlaid
from sonde.report._fit import Rows, tip
from sonde.report._format import Real, number, plural, share
from sonde.report._picture import Axis, Numbers, Picture

_NOTE = (
    "Root mean square of each unit: all units, the middle half, the median. Diamonds: units that "
    "a finding names. Zero is at the lower edge."
)


def units_picture(units: Rows) -> Picture | None:
    """Return bands of the units' root mean square at each site, with named units as dots."""
    rows = [row for row in units if any(row["bands"])]
    if not rows:
        return None
    axis = Axis.of([row["site"] for row in rows])
    rows = [row for row in rows if row["site"] in axis.names]
    floor = min(size for row in rows for size in row["bands"] if size) / 1.5
    bands = [_band(row, axis, floor) for row in rows]
    named = [_dot(row, unit, axis) for row in rows for unit in row["named"] if unit["rms"]]

    message = _message(rows, axis)

    def draw(width: int) -> Chart:
        return _chart(message, bands, named, axis)

    columns = ("site", "smallest", "25 %", "median", "75 %", "largest", "dead", "constant")
    table = tuple((r["site"], *r["bands"], r.get("n_dead"), r.get("n_constant")) for r in rows)
    return Picture("units", message, draw, Numbers(columns, table, "units"), _NOTE)


def _band(row: dict[str, Any], axis: Axis, floor: Real) -> dict[str, Any]:
    sizes = row["bands"]
    dead = plural(row.get("n_dead") or 0, "dead unit")
    text = tip(row["site"], f"median {number(sizes[2])}", f"largest {number(sizes[4])}", dead)
    ends = {f"b{i}": max(size or 0.0, floor) for i, size in enumerate(sizes)}
    return {"s": axis.names[row["site"]], "tip": text, "v": ends["b2"]} | ends


def _dot(row: dict[str, Any], unit: dict[str, Any], axis: Axis) -> dict[str, Any]:
    text = tip(
        row["site"],
        f"unit {unit['unit']}",
        f"rms {number(unit['rms'])}",
        f"largest {number(unit['max'])}",
        f"zero on {share(unit['zero_share'])} of rows",
        ", ".join(unit.get("codes", ())),
    )
    return {"s": axis.names[row["site"]], "v": unit["rms"], "tip": text}


def _message(rows: Rows, axis: Axis) -> str:
    ratios = [(r["bands"][4] / r["bands"][2], r["site"]) for r in rows if all(r["bands"][2::2])]
    text = "Size of the units by depth"
    if ratios:
        ratio, site = max(ratios)
        text = (
            f"The largest unit is at most {number(ratio)} times the median unit, at "
            f"{axis.say(site)}"
        )
    dead, site = max((row.get("n_dead") or 0, row["site"]) for row in rows)
    return f"{text}; most dead units: {dead:,} at {axis.say(site)}" if dead else text


def _chart(message: str, bands: Rows, named: Rows, axis: Axis) -> Chart:
    x, y = axis.across(), ChartAxis("v", title="", log=True)
    chart = curves(message, bands, x, y, bands=[("b0", "b4"), ("b1", "b3")])
    if not named:
        return chart
    look = {"shape": "diamond", "size": 90, "color": "var(--c2)"}
    return overlaid(chart, marks(message, named, x, y, **look))
