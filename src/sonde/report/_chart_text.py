"""Charts as lines of text: bars, small curves and shades, for a terminal or a log."""

from typing import Any, Final

from sonde.core.chart import Chart
from sonde.report._format import number, shown

BLOCKS: Final = "▁▂▃▄▅▆▇█"
SHADES: Final = "·░▒▓█"
MOST_LINES: Final = 40
NUMBER: Final = 9

Rows = list[dict[str, Any]]


def chart_to_text(chart: Chart, width: int = 80) -> str:
    """Return a chart as text, at most ``width`` wide and some forty lines long.

    Parameters
    ----------
    chart : dict
        As ``sonde.core.chart`` describes it.
    width : int, default=80

    Examples
    --------
    >>> from sonde.core.chart import bars
    >>> rows = [{"head": 0, "share": 0.5}, {"head": 1, "share": 1.0}]
    >>> print(chart_to_text(bars("Heads", rows, "head", "share"), 20), end="")
    Heads: share by head
    0 0.5       ████
    1 1         ████████
    """
    mark, encoding, rows = _main(chart)
    x, y = encoding["x"]["field"], encoding["y"]["field"]
    title = shown(chart.get("title") or "", 200)
    if mark == "rect":
        value = encoding["color"]["field"]
        lines = [f"{title}: {value} by {y} (down) and {x}", *_shades(rows, x, y, value, width)]
    else:
        lying = encoding["y"]["type"] == "nominal"
        name, value = (y, x) if lying else (x, y)
        lines = [f"{title}: {value} by {name}"]
        by = encoding.get("color", {}).get("field")
        if encoding["x" if not lying else "y"]["type"] == "quantitative" and mark != "bar":
            lines += _curves(rows, x, y, by, width)
        else:
            lines += _bars(rows, name, value, by, width)
    return "\n".join(line[:width].rstrip() for line in lines) + "\n"


def _main(chart: Chart) -> tuple[str, Chart, Rows]:
    """Return mark, channels and rows of the layer with the data."""
    layers: list[tuple[str, Chart, Rows]] = []
    for layer in chart.get("layer") or [chart]:
        mark = layer["mark"] if isinstance(layer["mark"], str) else layer["mark"]["type"]
        rows = (layer.get("data") or chart.get("data") or {}).get("values", [])
        is_whole = {"x", "y"} <= set(layer["encoding"])
        if is_whole and (mark in ("bar", "line", "point") or "color" in layer["encoding"]):
            layers.append((mark, layer["encoding"], rows))
    return layers[-1] if layers[-1][0] != "text" else layers[-2]


def _bars(rows: Rows, name: str, value: str, by: str | None, width: int) -> list[str]:
    present = [row for row in rows if row.get(value) is not None]
    labels = [_label(row, name, by) for row in rows[:MOST_LINES]]
    wide = min(max(map(len, labels), default=1), max(width // 3, 8))
    room = max(width - wide - NUMBER - 2, 4)
    most = max((abs(row[value]) for row in present), default=0.0) or 1.0
    lines = []
    for label, row in zip(labels, rows, strict=False):
        v = row.get(value)
        length = 0 if v is None else round(room * abs(v) / most)
        mark = "█" if v is None or v >= 0 else "░"
        lines.append(f"{label[:wide]:<{wide}} {number(v):<{NUMBER}} {mark * length}")
    return [*lines, *_rest(len(rows))]


def _label(row: dict[str, Any], name: str, by: str | None) -> str:
    return " ".join(_word(row[k]) for k in (name, by) if k and row.get(k) is not None)


def _word(value: Any) -> str:
    return shown(value, 40) if isinstance(value, str) else number(value)


def _curves(rows: Rows, x: str, y: str, by: str | None, width: int) -> list[str]:
    """Return a line of block characters for each curve, on a common scale."""
    present = [row for row in rows if row.get(x) is not None and row.get(y) is not None]
    kinds = list(dict.fromkeys(row.get(by) if by else None for row in present))[:MOST_LINES]
    if not present:
        return ["nothing to draw"]
    heights, places = [row[y] for row in present], [row[x] for row in present]
    low, high, left, right = min(heights), max(heights), min(places), max(places)
    wide = max((len(_word(kind)) for kind in kinds if kind is not None), default=0)
    room = max(width - wide - 1, 8) if wide else width
    lines = []
    for kind in kinds:
        row_of: dict[int, float] = {}
        for row in present:
            if by is None or row.get(by) == kind:
                at = round((row[x] - left) / ((right - left) or 1) * (room - 1))
                row_of[at] = row[y]
        blocks = "".join(_block(row_of.get(i), low, high) for i in range(room))
        lines.append((f"{_word(kind):<{wide}} " if wide else "") + blocks)
    return [*lines, f"{x} {number(left)} to {number(right)}; {y} {number(low)} to {number(high)}"]


def _block(value: float | None, low: float, high: float) -> str:
    if value is None:
        return " "
    return BLOCKS[round((value - low) / ((high - low) or 1) * (len(BLOCKS) - 1))]


def _shades(rows: Rows, x: str, y: str, value: str, width: int) -> list[str]:
    across, down = (list(dict.fromkeys(row[k] for row in rows)) for k in (x, y))
    at = {(row[x], row[y]): row[value] for row in rows}
    present = [v for v in at.values() if v is not None]
    if not present:
        return ["nothing to draw"]
    low, high = min(present), max(present)
    wide = min(max(len(_word(name)) for name in down), width // 3)
    lines = []
    for name in down[:MOST_LINES]:
        cells = "".join(2 * _shade(at.get((a, name)), low, high) for a in across)
        lines.append(f"{_word(name)[:wide]:<{wide}} {cells}")
    return [*lines, *_rest(len(down)), f"{SHADES[0]} {number(low)} to {SHADES[-1]} {number(high)}"]


def _shade(value: float | None, low: float, high: float) -> str:
    if value is None:
        return " "
    return SHADES[round((value - low) / ((high - low) or 1) * (len(SHADES) - 1))]


def _rest(count: int) -> list[str]:
    return [f"and {count - MOST_LINES} more"] if count > MOST_LINES else []
