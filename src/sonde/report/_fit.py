"""Adapt a chart to a page: size, space for labels, axis titles with the scale, colours.

``sonde.core.chart`` says what a chart shows; this module holds everything that a page adds.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, Final

from sonde.core.chart import Chart
from sonde.report._format import Real, shown

Rows = list[dict[str, Any]]

OKABE_ITO: Final = tuple(f"var(--c{i})" for i in range(1, 9))
SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
OCTAGON: Final = "M-.4,-1L.4,-1L1,-.4L1,.4L.4,1L-.4,1L-1,.4L-1,-.4Z"
MARKS: Final = {"error": OCTAGON, "warning": "triangle-up", "note": "circle"}
NARROW: Final = 340
WIDE: Final = 770
MARGIN: Final = 74
EXTENT: Final = 58
HEIGHT: Final = 220
MOST_SIDE: Final = 500
MOST_LABEL: Final = 140
ABOVE: Final = {
    "titleAngle": 0,
    "titleAlign": "left",
    "titleBaseline": "bottom",
    "titleX": -EXTENT,
    "titleY": -6,
}  # the title stands above the axis, so that panels with and without it stand in line

# Tiny shares as 1e-4%, for longer texts would be cut off at the edge.
_SHORT_SHARE: Final = (
    "datum.value > 0 && datum.value < 1e-4 ? format(100 * datum.value, '.0e') + '%' : datum.label"
)
STYLES: Final = {
    "level": {"color": "var(--soft)", "strokeWidth": 1.5},
    "limit": {"color": "var(--ink)"},
}


def tip(*parts: str) -> str:
    """Join the lines of a tooltip into one text."""
    return " · ".join(shown(part, 120) for part in parts if part)


def fitted(chart: Chart, width: int) -> Chart:
    """Return a chart for a page width, with the axes and colours of pages.

    ``width`` and ``height`` of the chart itself are kept. Its title is left out: the page has it.
    """
    spec = {k: v for k, v in copy.deepcopy(chart).items() if k != "title"}
    if "spec" in spec:  # panels one below the other
        spec["spec"] = fitted(spec["spec"], width)
        return spec
    spec = _in_layers(spec)
    layers = [layer for layer in spec["layer"] if layer.get("encoding")]
    is_matrix = any(layer["mark"]["type"] == "rect" for layer in layers)
    across, up = _names(layers, "x", spec), _names(layers, "y", spec)
    # A page draws letters wider than the renderer that left room for the names of lines.
    letters = max(map(len, up), default=0)
    room = width - max(MARGIN, min(MOST_LABEL, 9 * letters) + 44)
    spec.setdefault("width", min(room, MOST_SIDE) if is_matrix else room)
    if is_matrix:
        square = round(spec["width"] * len(up) / max(len(across), 1))
        spec.setdefault("height", max(min(square, MOST_SIDE), 24 * min(len(up), 12)))
    spec.setdefault("height", max(60, 30 * len(up)) if up else HEIGHT)
    if up:
        spec.setdefault("padding", {"left": 24, "right": 5, "top": 5, "bottom": 5})
    for layer in layers:
        encoding, rows = layer["encoding"], _chart_rows(layer, spec)
        if encoding.get("x", {}).get("type") in ("nominal", "ordinal"):
            _label(encoding["x"], across, spec["width"], width < NARROW, is_matrix)
        if encoding.get("y", {}).get("type") in ("nominal", "ordinal"):
            _label_lines(encoding["y"], up, spec["height"], is_matrix)
        _colored(layer, spec["width"])
        for name in ("x", "y"):
            if encoding.get(name, {}).get("type") == "quantitative":
                _scale(name, encoding, rows, layers, spec)
    return spec


def _in_layers(spec: Chart) -> Chart:
    """Return the chart with every mark in its own layer, lines separate from their dots."""
    own = spec.pop("layer", None) or [
        {k: spec.pop(k) for k in ("mark", "encoding", "transform") if k in spec}
    ]
    layers = []
    for layer in own:
        layer["mark"] = {"type": layer["mark"]} if isinstance(layer["mark"], str) else layer["mark"]
        layer["encoding"] = {**spec.get("encoding", {}), **layer["encoding"]}
        if layer["mark"]["type"] == "line" and layer["mark"].pop("point", False):
            dots = {**layer, "mark": {"type": "point", "tooltip": True}}
            dots["encoding"] = {k: v for k, v in layer["encoding"].items() if k != "order"}
            layer["mark"]["aria"] = False
            layer["encoding"] = {k: v for k, v in layer["encoding"].items() if k != "description"}
            layers += [layer, copy.deepcopy(dots)]
        else:
            layers.append(layer)
    spec.pop("encoding", None)
    return spec | {"layer": layers}


def _chart_rows(layer: Chart, spec: Chart) -> list[dict[str, Any]]:
    return (layer.get("data") or spec.get("data") or {}).get("values", [])


def _names(layers: list[Chart], channel: str, spec: Chart) -> list[str]:
    """Return the names along a categorical axis, in order; none for a numeric axis."""
    names: dict[Any, None] = {}
    for layer in layers:
        encoding = layer["encoding"].get(channel, {})
        if encoding.get("type") in ("nominal", "ordinal"):
            listed = encoding.get("sort")
            listed = listed if isinstance(listed, list) else []
            own = (row.get(encoding["field"]) for row in _chart_rows(layer, spec))
            names |= dict.fromkeys([*listed, *own])
    return [str(name) for name in names if name is not None]


def _label(x: Chart, names: list[str], width: Real, narrow: bool, is_matrix: bool) -> None:
    """Choose axis labels that do not overlap."""
    longest, letter = max(map(len, names), default=1), 9 if narrow else 8
    flat = (longest * letter + 8) * len(names) <= width or longest <= (2 if is_matrix else 4)
    room = width // (longest * letter + 8) if flat else width // 24
    step = max(1, -(-len(names) // max(int(room), 1)))
    look: dict[str, Any] = {"labelAngle": 0 if flat else -50}
    if x["type"] == "nominal":
        look["values"] = names[::step]
        x["sort"] = names
    bare = {"ticks": False, "domain": False} if is_matrix else {}
    x["axis"] = {**look, **bare, **x.get("axis", {})}
    x.setdefault("scale", {"paddingInner": 0.04} if is_matrix else {"padding": 0.5})


def _label_lines(y: Chart, names: list[str], height: Real, is_matrix: bool) -> None:
    step = max(1, math.ceil(len(names) * 18 / height))
    look: dict[str, Any] = {"grid": False, "ticks": False, "domain": not is_matrix}
    if y["type"] == "nominal":
        look["values"] = names[::step]
        y["sort"] = names
    y["axis"] = {**look, **y.get("axis", {})}
    if is_matrix:
        y.setdefault("scale", {"paddingInner": 0.04})


def _colored(layer: Chart, width: Real) -> None:
    color, mark = layer["encoding"].get("color"), layer["mark"]
    if color is None:
        return
    if color.get("type") == "nominal" and isinstance(color.get("sort"), list):
        kinds = color["sort"]
        color.setdefault("scale", {}).setdefault("domain", kinds)
        color["scale"].setdefault("range", [OKABE_ITO[i % 8] for i in range(len(kinds))])
        if mark["type"] == "point" and "shape" not in mark:
            shapes = [SHAPES[i % len(SHAPES)] for i in range(len(kinds))]
            scale = {"domain": kinds, "range": shapes}
            layer["encoding"]["shape"] = {"field": color["field"], "type": "nominal", "sort": kinds}
            layer["encoding"]["shape"]["scale"] = scale
    elif color.get("type") == "quantitative":
        scale = color.setdefault("scale", {})
        scale.setdefault("scheme", "cividis")
        bar = {"orient": "bottom", "gradientLength": min(width, 240), "format": ".3~r"}
        color.setdefault("legend", {**bar, "title": color.get("title", color["field"])})


def _scale(name: str, encoding: Chart, rows: Any, layers: list[Chart], spec: Chart) -> None:
    channel = encoding[name]
    axis = channel.setdefault("axis", {}) or {}
    percent = axis.get("format", "").endswith("p")
    if name == "x":
        channel["axis"] = {"format": ",.3~r", "labelOverlap": True, "labelSeparation": 6, **axis}
        return
    look: dict[str, Any] = {"tickCount": 5, "format": ",.3~r", **ABOVE}
    look |= {"minExtent": EXTENT, "maxExtent": EXTENT}
    titles = [channel.get("title")]
    if percent:
        look["labelExpr"] = _SHORT_SHARE
    if channel.get("scale", {}).get("type") == "log":
        values = [v for layer in layers for v in _heights(layer, _chart_rows(layer, spec))]
        low, high = min(values) / 1.25, max(values) * 1.25
        channel["scale"] = {"type": "log", "domain": [low, high], "nice": False}
        look["values"] = _ticks(low, high)
        titles.append("log scale")
    channel["title"] = ", ".join(filter(None, titles)) or None
    channel["axis"] = {**look, **axis}


def _heights(layer: Chart, rows: list[dict[str, Any]]) -> Iterator[Real]:
    for name in ("y", "y2"):
        field = layer["encoding"].get(name, {}).get("field")
        yield from (row[field] for row in rows if field and (row.get(field) or 0) > 0)


def _ticks(low: Real, high: Real) -> list[float]:
    """Return at most six round numbers between the ends of a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(decades) <= 3
    steps = (1, 1.5, 2, 3, 4, 6, 8) if high / low < 8 else (1, 2, 5) if few else (1,)
    ticks = [float(f"{m}e{d}") for d in decades for m in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks[:: max(1, math.ceil(len(ticks) / 6))]
