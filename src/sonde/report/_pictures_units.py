"""How large the units of each site are, and the few that findings name."""

from typing import Any

from sonde.report._axes import Rows, band, dots, line, sized, tip, x_sites, y_log
from sonde.report._format import Real, number, plural, share
from sonde.report._picture import Axis, Numbers, Picture

_NOTE = (
    "Root mean square of each unit: all units, the middle half, the median. Diamonds: units that a "
    "finding names. Zero stands at the lower edge."
)


def units_picture(units: Rows) -> Picture | None:
    """Return bands of the units' root mean square at each site, with the named units as dots."""
    rows = [row for row in units if any(row["bands"])]
    if not rows:
        return None
    axis = Axis.of([row["site"] for row in rows])
    rows = [row for row in rows if row["site"] in axis.names]
    floor = min(size for row in rows for size in row["bands"] if size) / 1.5
    bands = [_band(row, axis, floor) for row in rows]
    named = [_dot(row, unit, axis) for row in rows for unit in row["named"] if unit["rms"]]

    def draw(width: int) -> Any:
        return _chart(bands, named, axis, width)

    columns = ("site", "smallest", "25 %", "median", "75 %", "largest", "dead", "constant")
    table = tuple((r["site"], *r["bands"], r.get("n_dead"), r.get("n_constant")) for r in rows)
    return Picture("units", _message(rows, axis), draw, Numbers(columns, table, "units"), _NOTE)


def _band(row: dict[str, Any], axis: Axis, floor: Real) -> dict[str, Any]:
    sizes = row["bands"]
    dead = plural(row.get("n_dead") or 0, "dead unit")
    text = tip(row["site"], f"median {number(sizes[2])}", f"largest {number(sizes[4])}", dead)
    ends = {f"b{i}": max(size or 0.0, floor) for i, size in enumerate(sizes)}
    return {"s": axis.names[row["site"]], "t": text, "v": ends["b2"]} | ends


def _dot(row: dict[str, Any], unit: dict[str, Any], axis: Axis) -> dict[str, Any]:
    text = tip(
        row["site"],
        f"unit {unit['unit']}",
        f"rms {number(unit['rms'])}",
        f"largest {number(unit['max'])}",
        f"zero on {share(unit['zero_share'])} of rows",
        ", ".join(unit.get("codes", ())),
    )
    return {"s": axis.names[row["site"]], "v": unit["rms"], "t": text}


def _message(rows: Rows, axis: Axis) -> str:
    ratios = [(r["bands"][4] / r["bands"][2], r["site"]) for r in rows if all(r["bands"][2::2])]
    text = "Size of the units by depth"
    if ratios:
        ratio, site = max(ratios)
        text = (
            f"The largest unit is at most {number(ratio)} times the median one, at {axis.say(site)}"
        )
    dead, site = max((row.get("n_dead") or 0, row["site"]) for row in rows)
    return f"{text}; most dead units: {dead:,} at {axis.say(site)}" if dead else text


def _chart(bands: Rows, named: Rows, axis: Axis, width: int) -> Any:
    sizes = [row[f"b{i}"] for row in bands for i in range(5)] + [row["v"] for row in named]
    x, y = x_sites(axis.labels, width, axis.title), y_log("v", min(sizes), max(sizes))
    layers = [band(bands, x, y, "b0", "b4", 0.16)]
    layers += [band(bands, x, y, "b1", "b3", 0.3), *line(bands, x, y)]
    if named:
        layers.append(dots(named, x, y, shape="diamond", size=90, color="var(--c2)"))
    return sized(layers, width, 240)
