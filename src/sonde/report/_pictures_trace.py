"""The map of layers and positions: what the state of one run brings into the other."""

import math
from typing import Any, Final

import altair as alt

from sonde.report._axes import MARGIN, NARROW, WIDE, layer, tip
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

    def draw(width: int) -> Any:
        axis = Axis.of(sites, _MOST[width])
        size = [max(abs(row[i] or 0.0) for row in values) for i in range(len(names))]
        kept = sorted(sorted(range(len(names)), key=lambda i: -size[i])[: _POSITIONS[width]])
        cells = [
            {
                "a": names[i],
                "b": axis.names[site],
                "v": row[i],
                "t": tip(site, names[i], f"share {number(row[i])}"),
            }
            for site, row in zip(sites, values, strict=True)
            if site in axis.names
            for i in kept
        ]
        return _drawn(cells, [names[i] for i in kept], axis, width)

    rows = tuple((site, *row) for site, row in zip(sites, values, strict=True))
    note = "Share of the difference between the two runs: 0 nothing, 1 all. Positions across, "
    note += "layers upward; the positions with the largest shares where there are many."
    return Picture(key, message, draw, Numbers(("site", *names), rows, key), note)


def _drawn(cells: list[dict[str, Any]], names: list[str], axis: Axis, width: int) -> Any:
    wide, high = width - MARGIN, max(60, min(22 * len(axis.labels), 420))
    bar = alt.Legend(title="share", orient="bottom", gradientLength=240, format=".1f")
    scale = alt.Scale(scheme="blueorange", domain=[-1, 1], clamp=True)
    up = alt.Axis(title=axis.title or None, ticks=False, domain=False)
    step = max(1, math.ceil(len(names) * 16 / wide))
    across = alt.Axis(
        values=names[::step], labelAngle=-60, title=None, ticks=False, domain=False, labelLimit=110
    )
    gap = alt.Scale(paddingInner=0.04)
    marks = (
        layer(cells)
        .mark_rect()
        .encode(
            x=alt.X("a:N", sort=names, axis=across, scale=gap),
            y=alt.Y("b:N", sort=axis.labels[::-1], axis=up, scale=gap),
            color=alt.Color("v:Q", scale=scale, legend=bar),
            description=alt.Description("t:N"),
        )
    )
    return marks.properties(width=wide, height=high, padding={"left": 20, "right": 5})
