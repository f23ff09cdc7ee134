"""Charts as data: the kinds of chart that results and reports use.

Each function returns a Vega-Lite dict, which notebooks show as it is and ``sonde.report`` draws on
a page or in a terminal. A row may carry a ``tip``, the text that the page shows for its mark.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

Row = Mapping[str, Any]
Chart = dict[str, Any]

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v5.json"
LEVEL: Final = {"type": "rule", "strokeDash": [5, 4], "style": "level"}
EMPTY: Final = {"type": "rect", "color": "#888888", "opacity": 0.12}


@final
@dataclass(frozen=True)
class ChartAxis:
    """Axis of a chart whose title cannot be just a column name.

    Parameters
    ----------
    field : str
        The column.
    title : str, optional
        By default the column's name; empty for none.
    names : sequence of str, optional
        For an axis of names: all names in order, also names without a row.
    low, high : float, optional
        Ends of the axis.
    log, share, zero : bool, default=False
        Logarithmic; printed as per cent; begins at zero.
    """

    field: str
    title: str | None = None
    names: Sequence[str] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    share: bool = False
    zero: bool = False

    def channel(self, rows: Sequence[Row], named: bool = False) -> dict[str, Any]:
        """Return the Vega-Lite channel; with ``named``, numbers are positions of names."""
        values = [row[self.field] for row in rows if row.get(self.field) is not None]
        title = self.field if self.title is None else self.title or None
        options: dict[str, Any] = {"field": self.field, "title": title}
        if self.names is not None or any(isinstance(v, str) for v in values):
            return options | {
                "type": "nominal",
                "sort": list(self.names or dict.fromkeys(values)),
            }
        if named:
            return options | {"type": "ordinal"}
        scale: dict[str, Any] = {"type": "log"} if self.log else {"zero": self.zero}
        if self.low is not None and self.high is not None:
            scale |= {"domain": [self.low, self.high], "nice": False}
        look = {"axis": {"format": ".3~p"}} if self.share else {}
        return options | {"type": "quantitative", "scale": scale} | look


Axis = ChartAxis | str


def curves(
    title: str,
    rows: Iterable[Row],
    x: Axis,
    y: Axis,
    *,
    by: str = "",
    bands: Sequence[tuple[str, str]] = (),
    levels: Iterable[Row] = (),
    dots: bool = True,
    order: str = "",
    colors: Mapping[str, str] | None = None,
    **look: Any,
) -> Chart:
    """Return a line chart of the rows; ``by`` names the column that separates the lines.

    Parameters
    ----------
    title : str
        Title of the chart.
    rows : iterable of mapping
        In the order along the line.
    x : ChartAxis or str
        Column of the horizontal axis, or an axis with its title and scale.
    y : ChartAxis or str
        Column of the vertical axis, or an axis with its title and scale.
    by : str, optional
        Column that separates the lines; empty for a single line.
    bands : sequence of (str, str), optional
        Columns of the lower and upper ends of areas, e.g. an interval.
    levels : iterable of mapping, optional
        Dashed lines across: ``value``, perhaps ``tip``, and ``name``, written away from the curve.
    dots : bool, default=True
        Mark each row.
    order : str, optional
        Column of numbers along which the line goes; by default ``x``.
    colors : mapping of str to str, optional
        Colours of the values of ``by``.
    **look
        Vega-Lite properties of the line, e.g. ``strokeDash``.

    Examples
    --------
    >>> curves("Loss", [{"step": 0, "nats": 2.0}, {"step": 9, "nats": 1.0}], "step", "nats")["mark"]
    {'type': 'line', 'tooltip': True, 'point': True}
    """
    rows = _finite(rows)
    across, up = _axis(x).channel(rows), _axis(y).channel(rows)
    layers = [_area(across, up, ends) for ends in bands]
    mark = {"type": "line", "tooltip": True, **({"point": True} if dots else {}), **look}
    channels = _color(rows, by, colors)
    if order:
        channels["order"] = {"field": order, "type": "quantitative"}
    layers.append(_layer(mark, rows, x=across, y=up, **channels))
    named = _named(levels := _finite(levels), [row[up["field"]] for row in rows], up)
    return _chart(title, rows, [*_levels(levels, up), *named, *layers])


def marks(
    title: str,
    rows: Iterable[Row],
    x: Axis,
    y: Axis,
    *,
    by: str = "",
    low: str = "",
    high: str = "",
    levels: Iterable[Row] = (),
    named: bool = False,
    colors: Mapping[str, str] | None = None,
    **look: Any,
) -> Chart:
    """Return a point chart of the rows, with intervals if ``low`` and ``high`` name columns.

    Parameters
    ----------
    title : str
        Title of the chart.
    rows : object
        Rows of a table, each a mapping of column name to value.
    x : ChartAxis | str
        Column of the horizontal axis, or an axis with its title and scale.
    y : ChartAxis | str
        Column of the vertical axis, or an axis with its title and scale.
    by : str, default=""
        Column that separates the series by colour; empty for a single series.
    levels : object, default=()
        Reference lines, each with its value and its text.
    colors : Mapping[str, str], optional
        Colour of each series, by its name in the column ``by``; by default a fixed palette.
    low, high : str, optional
        Columns of the ends, along the axis of numbers.
    named : bool, default=False
        Take numbers of ``x`` as names of places.
    **look
        Vega-Lite properties of the marks, e.g. ``shape``.

    Examples
    --------
    >>> marks("A map", [{"x": 0.0, "y": 1.0}], "x", "y")["mark"]["type"]
    'point'
    """
    rows = _finite(rows)
    across, up = _axis(x).channel(rows, named), _axis(y).channel(rows)
    color = _color(rows, by, colors)
    layers: list[Chart] = []
    if low and high:
        flat = up["type"] == "nominal"
        ends = {"x" if flat else "y": {**(across if flat else up), "field": low}}
        ends |= {"x2" if flat else "y2": {"field": high}}
        mark = {"type": "rule", "strokeWidth": 4, "opacity": 0.4, "aria": False}
        layers.append(_layer(mark, rows, **({"x": across, "y": up} | ends), **color))
    mark = {"type": "point", "tooltip": True, **look}
    layers.append(_layer(mark, rows, x=across, y=up, **color))
    return _chart(title, rows, [*_levels(levels, up), *layers])


def bars(
    title: str,
    rows: Iterable[Row],
    x: Axis,
    y: Axis,
    *,
    by: str = "",
    colors: Mapping[str, str] | None = None,
) -> Chart:
    """Return a bar chart of the rows, horizontal if ``y`` holds the names.

    Several bars of one name, by the column ``by``, stand side by side: they are no parts of a sum.

    Parameters
    ----------
    title : str
        Title of the chart.
    rows : object
        Rows of a table, each a mapping of column name to value.
    x : ChartAxis | str
        Column of the horizontal axis, or an axis with its title and scale.
    y : ChartAxis | str
        Column of the vertical axis, or an axis with its title and scale.
    by : str, default=""
        Column that separates the series by colour; empty for a single series.
    colors : Mapping[str, str], optional
        Colour of each series, by its name in the column ``by``; by default a fixed palette.

    Examples
    --------
    >>> chart = bars("Share", [{"head": 0, "entropy": 0.5}], "head", "entropy")
    >>> chart["encoding"]["x"]["type"]
    'ordinal'
    """
    rows = _finite(rows)
    up = _axis(y).channel(rows)
    across = _axis(x).channel(rows, named=up["type"] == "quantitative")
    mark = {"type": "bar", "tooltip": True}
    channels = _color(rows, by, colors)
    side, names = ("xOffset", across) if up["type"] == "quantitative" else ("yOffset", up)
    if by and len({row[names["field"]] for row in rows}) < len(rows):
        channels[side] = {key: channels["color"][key] for key in ("field", "type", "sort")}
    return _chart(title, rows, [_layer(mark, rows, x=across, y=up, **channels)])


def histogram(
    title: str,
    rows: Iterable[Row],
    low: Axis,
    high: str,
    value: Axis,
    *,
    by: str = "",
    limit: float | None = None,
) -> Chart:
    """Return bars from ``low`` to ``high`` of height ``value``, with a line at ``limit``.

    Parameters
    ----------
    title : str
        Title of the chart.
    rows : object
        Rows of a table, each a mapping of column name to value.
    low : ChartAxis | str
        Column with the lower edge of each bar, or an axis with its title.
    high : str
        Column with the upper edge of each bar.
    value : ChartAxis | str
        Column with the height of each bar.
    by : str, default=""
        Column that separates the series by colour; empty for a single series.
    limit : float, optional
        Value that a vertical line marks; none by default.

    Examples
    --------
    >>> chart = histogram("Scores", [{"a": 0.0, "b": 1.0, "share": 1.0}], "a", "b", "share")
    >>> chart["encoding"]["x2"]
    {'field': 'b'}
    """
    rows = _finite(rows)
    across = _axis(low).channel(rows)
    up = {**_axis(value).channel(rows), "stack": None}
    color = _color(rows, by)
    mark = {"type": "bar", "tooltip": True, "opacity": 0.55}
    layers = [_layer(mark, rows, x=across, x2={"field": high}, y=up, y2={"datum": 0}, **color)]
    if limit is not None:
        at = [{across["field"]: limit, "tip": f"threshold · {limit:.3g}"}]
        rule = {"type": "rule", "strokeWidth": 2, "strokeDash": [6, 3], "style": "limit"}
        layers.append(_layer(rule, at, own=True, x=across))
    return _chart(title, rows, layers)


def matrix(
    title: str,
    rows: Iterable[Row],
    x: Axis,
    y: Axis,
    value: str,
    *,
    low: float | None = None,
    high: float | None = None,
    two_sided: bool = False,
    text: str = "",
    scheme: str = "",
) -> Chart:
    """Return a heat map with a cell for each row, empty for missing or non-finite values.

    Parameters
    ----------
    title : str
        Title of the chart.
    rows : object
        Rows of a table, each a mapping of column name to value.
    x : ChartAxis | str
        Column of the cells' horizontal place; numbers are taken as names.
    y : ChartAxis | str
        Column of the cells' vertical place; numbers are taken as names.
    value : str
        The column that colours a cell.
    low, high : float, optional
        Values of the ends of the colours.
    two_sided : bool, default=False
        Colours that tell values below 0 from those above; without ``low`` and ``high`` they end at
        the largest distance from 0 on both sides.
    text : str, optional
        A column that is written into the cells; for schemes that are dark at their upper end.
    scheme : str, optional
        Vega's name of the colours.

    Examples
    --------
    >>> matrix("CKA", [{"layer": 0, "other": 0, "cka": 1.0}], "layer", "other", "cka")["mark"]
    {'type': 'rect', 'tooltip': True}
    """
    rows = _finite(rows)
    across, up = _axis(x).channel(rows, named=True), _axis(y).channel(rows, named=True)
    scale: dict[str, Any] = {"scheme": scheme} if scheme else {}
    if two_sided:
        scale |= {"scheme": "blueorange"}
        if low is None or high is None:  # equal distances from 0 have equal colours
            sizes = [abs(float(row[value])) for row in rows if row[value] is not None]
            low, high = -max(sizes, default=1.0), max(sizes, default=1.0)
    if low is not None and high is not None:
        scale = {**scale, "domain": [low, high], "clamp": True}
    color = {"field": value, "type": "quantitative", **({"scale": scale} if scale else {})}
    full = [row for row in rows if row[value] is not None]
    mark = {"type": "rect", "tooltip": True}
    layers = [_layer(mark, full, own=len(full) < len(rows), x=across, y=up, color=color)]
    if len(full) < len(rows):
        layers.insert(0, _layer(EMPTY, rows, x=across, y=up))
    if text:
        top = max((row[value] for row in full), default=1.0) if high is None else high
        ink = {"condition": {"test": f"datum.{value} > {top / 2}", "value": "#fff"}}
        at = {"x": across, "y": up, "text": {"field": text}, "color": {**ink, "value": "#000"}}
        layers.append(_layer({"type": "text", "aria": False}, full, own=True, **at))
    return _chart(title, rows, layers)


def cells(
    values: Iterable[Iterable[float]], x: str, y: str, value: str
) -> list[dict[str, float | int]]:
    """Return rows for ``matrix`` from nested lists, with the outer index as ``y``.

    Examples
    --------
    >>> cells([[0.5, 1.0]], "latent", "factor", "score")[1]
    {'factor': 0, 'latent': 1, 'score': 1.0}
    """
    return [{y: i, x: j, value: v} for i, row in enumerate(values) for j, v in enumerate(row)]


def overlaid(chart: Chart, *others: Chart) -> Chart:
    """Return layered charts with the axes and the title of the first chart."""
    layers = [layer for one in (chart, *others) for layer in _layers(one)]
    return {"$schema": SCHEMA, "title": chart["title"], "layer": layers}


def _layers(chart: Chart) -> list[Chart]:
    own = chart.get("layer") or [{k: chart[k] for k in ("mark", "encoding")}]
    return [{"data": chart["data"], **layer} if "data" in chart else layer for layer in own]


def _axis(axis: Axis) -> ChartAxis:
    return ChartAxis(axis) if isinstance(axis, str) else axis


def _chart(title: str, rows: Sequence[Row], layers: list[Chart]) -> Chart:
    chart: Chart = {"$schema": SCHEMA, "title": title, "data": {"values": list(rows)}}
    return chart | (layers[0] if len(layers) == 1 else {"layer": layers})


def _layer(mark: dict[str, Any], rows: Sequence[Row], own: bool = False, **channels: Any) -> Chart:
    if any("tip" in row for row in rows) and mark.get("aria", True):
        channels["description"] = {"field": "tip"}
    layer = {"mark": mark, "encoding": channels}
    return {"data": {"values": list(rows)}, **layer} if own else layer


def _area(x: dict[str, Any], y: dict[str, Any], ends: tuple[str, str]) -> Chart:
    mark = {"type": "area", "opacity": 0.22, "aria": False}
    return {
        "mark": mark,
        "encoding": {"x": x, "y": {**y, "field": ends[0]}, "y2": {"field": ends[1]}},
    }


def _levels(levels: Iterable[Row], y: dict[str, Any]) -> list[Chart]:
    rows = _finite(levels)
    return [_layer(LEVEL, rows, own=True, y={**y, "field": "value"})] if rows else []


def _named(levels: list[dict[str, Any]], heights: list[Any], y: dict[str, Any]) -> list[Chart]:
    """Return labels of horizontal lines, at the end and on the side away from the curve."""
    labels: list[Chart] = []
    for level in levels:
        ends = [v for v in heights if v is not None]
        if not level.get("name") or not ends:
            continue
        first, last = ends[0] - level["value"], ends[-1] - level["value"]
        left = abs(first) > abs(last)
        below = (first if left else last) > 0
        mark: dict[str, Any] = {"type": "text", "aria": False}
        mark |= {"align": "left", "dx": 4} if left else {"align": "right", "dx": -4}
        mark |= {"baseline": "top", "dy": 5} if below else {"baseline": "bottom", "dy": -4}
        at = {"x": {"value": 0 if left else "width"}, "y": {**y, "field": "value"}}
        labels.append(_layer(mark, [level], own=True, text={"field": "name"}, **at))
    return labels


def _color(rows: Sequence[Row], by: str, colors: Mapping[str, str] | None = None) -> dict[str, Any]:
    if not by:
        return {}
    series = dict.fromkeys(row[by] for row in rows)
    kinds = [kind for kind in colors if kind in series] if colors else list(series)
    scale = {"scale": {"domain": kinds, "range": [colors[k] for k in kinds]}} if colors else {}
    return {"color": {"field": by, "type": "nominal", "sort": kinds, **scale}}


def _finite(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return rows as plain dicts, with None in place of numbers that are not finite."""
    return [{k: _known(v) for k, v in row.items()} for row in rows]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
