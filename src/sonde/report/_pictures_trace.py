"""The map of layers and positions: what the state of one run brings into the other."""

from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, matrix
from sonde.report._fit import NARROW, WIDE, tip
from sonde.report._format import number, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.trace_terminal import place

_MOST: Final = {WIDE: 48, NARROW: 24}
_POSITIONS: Final = {WIDE: 64, NARROW: 24}


def shares_picture(
    key: str, message: str, one: dict[str, Any], values: list[list[float | None]], sites: list[str]
) -> Picture:
    """Return the shares of one pair, positions across and layers upward."""
    names = [f"{i} {shown(place(one, i), 14)}" if one["tokens"] else str(i)
             for i in range(len(values[0]))]  # fmt: skip

    def draw(width: int) -> Chart:
        axis = Axis.of(sites, _MOST[width])
        size = [max(abs(row[i] or 0.0) for row in values) for i in range(len(names))]
        kept = sorted(sorted(range(len(names)), key=lambda i: -size[i])[: _POSITIONS[width]])
        cells = [
            {
                "a": names[i],
                "b": axis.names[site],
                "share": row[i],
                "tip": tip(site, names[i], f"share {number(row[i])}"),
            }
            for site, row in zip(sites, values, strict=True)
            if site in axis.names
            for i in kept
        ]
        x = ChartAxis("a", title="", names=[names[i] for i in kept])
        ends: Any = {"low": -1, "high": 1, "two_sided": True}
        made = matrix(message, cells, x, axis.upward("b"), "share", **ends)
        return made | {"height": max(60, min(22 * len(axis.labels), 420))}

    rows = tuple((site, *row) for site, row in zip(sites, values, strict=True))
    note = "Share of the difference between the two runs: 0 nothing, 1 all. Positions across, "
    note += "layers upward; the positions with the largest shares where there are many."
    return Picture(key, message, draw, Numbers(("site", *names), rows, key), note)
