"""Axes, colours and the marks that pictures share; tooltips as one line of text."""

import math
from typing import Any, Final

import altair as alt

from sonde.report._format import Real, shown

OKABE_ITO: Final = tuple(f"var(--c{i})" for i in range(1, 9))
SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
OCTAGON: Final = "M-.4,-1L.4,-1L1,-.4L1,.4L.4,1L-.4,1L-1,.4L-1,-.4Z"
MARKS: Final = {"error": OCTAGON, "warning": "triangle-up", "note": "circle"}
NARROW: Final = 340
WIDE: Final = 770
MARGIN: Final = 74
EXTENT: Final = 58
LOG_TITLE: Final = {
    "title": "log scale",
    "titleAngle": 0,
    "titleAlign": "left",
    "titleBaseline": "bottom",
    "titleX": -EXTENT,
    "titleY": -6,
}  # stands above the axis, so that panels with and without it stand in line

# Tiny shares as 1e-4%, for longer texts would be cut off at the edge.
_SHORT_SHARE: Final = (
    "datum.value > 0 && datum.value < 1e-4 ? format(100 * datum.value, '.0e') + '%' : datum.label"
)

Rows = list[dict[str, Any]]


def tip(*parts: str) -> str:
    """Return the lines of a tooltip as one text."""
    return " · ".join(shown(part, 120) for part in parts if part)


def x_sites(names: list[str], width: int, title: str, field: str = "s") -> alt.X:
    """Return the axis of sites in order of execution, with labels that do not meet."""
    longest, width = max(map(len, names), default=1), width - MARGIN
    letter = 9 if width < NARROW else 8
    flat = (longest * letter + 8) * len(names) <= width or longest <= 4
    room = width // (longest * letter + 8) if flat else width // 24
    step = max(1, -(-len(names) // max(room, 1)))
    axis = alt.Axis(values=names[::step], labelAngle=0 if flat else -50, title=title or None)
    return alt.X(f"{field}:N", sort=names, axis=axis, scale=alt.Scale(padding=0.5))


def y_log(field: str, low: Real, high: Real, percent: bool = False) -> alt.Y:
    """Return a logarithmic axis that says so, ends near the values and has at most six ticks."""
    low, high = low / 1.25, high * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(decades) <= 3
    steps = (1, 1.5, 2, 3, 4, 6, 8) if high / low < 8 else (1, 2, 5) if few else (1,)
    ticks = [float(f"{m}e{d}") for d in decades for m in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    ticks = ticks[:: max(1, math.ceil(len(ticks) / 6))]
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    return alt.Y(f"{field}:Q", scale=scale, axis=y_axis(percent, values=ticks, **LOG_TITLE))


def y_axis(percent: bool = False, **more: Any) -> alt.Axis:
    """Return the look of an axis of amounts; all have one width, so that panels stand in line."""
    form = ".3~p" if percent else ",.3~r"
    look = {"title": None, "tickCount": 5, "minExtent": EXTENT, "maxExtent": EXTENT, **more}
    return alt.Axis(format=form, **({"labelExpr": _SHORT_SHARE} if percent else {}), **look)


def layer(rows: Rows) -> alt.Chart:
    """Return an empty layer over these rows; altair copies lists at every step, but no tuple."""
    return alt.Chart(alt.Data(values=tuple(rows)))


def along(y: alt.Y, field: str) -> alt.Y:
    """Return the same axis for another column, so that layers do not widen it."""
    return alt.Y(f"{field}:Q", scale=y["scale"], axis=y["axis"])


def band(
    rows: Rows, x: alt.X, y: alt.Y, low: str = "lo", high: str = "hi", opacity: Real = 0.22
) -> Any:
    """Return the area between two columns."""
    area = layer(rows).mark_area(opacity=opacity, color="var(--c1)", aria=False)
    return area.encode(x=x, y=along(y, low), y2=alt.Y2(f"{high}:Q"))


def line(rows: Rows, x: alt.X, y: alt.Y, color: str = "var(--c1)") -> list[Any]:
    """Return a line with a dot and a tooltip for each row."""
    path = layer(rows).mark_line(color=color, strokeWidth=2, aria=False).encode(x=x, y=y)
    return [path, dots(rows, x, y, color=color)]


def dots(rows: Rows, x: alt.X, y: alt.Y, **look: Any) -> Any:
    """Return a mark with its tooltip for each row."""
    mark = layer(rows).mark_point(**{"filled": True, "size": 46, "opacity": 1, **look})
    return mark.encode(x=x, y=y, description=alt.Description("t:N"))


def level_rules(rows: Rows, y: alt.Y, **look: Any) -> Any:
    """Return a dashed level line for each row, column ``v``."""
    look = {"strokeDash": [5, 4], "strokeWidth": 1.5, "color": "var(--soft)", **look}
    return layer(rows).mark_rule(**look).encode(y=along(y, "v"), description=alt.Description("t:N"))


def sized(layers: list[Any], width: int, height: int) -> Any:
    """Return the layers as one chart as wide as the page leaves room for."""
    return alt.layer(*layers).properties(width=width - MARGIN, height=height)
