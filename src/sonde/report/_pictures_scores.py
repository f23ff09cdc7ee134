"""Scores of in- and out-of-distribution rows: histogram, ROC curve, AUROC by site."""

from itertools import pairwise
from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, curves, histogram, marks, overlaid
from sonde.report._fit import Rows, tip
from sonde.report._format import Real, number, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.run.instruments.entries import place_of

_KINDS: Final = ("usual", "unusual")
_MOST_ROWS: Final = 60


def named(instrument: str, site: str) -> str:
    """Return a method and its site for a sentence."""
    place = shown(place_of(instrument, site), 60).removesuffix(":out")
    return f"{shown(instrument, 40)} at {place}"


def histogram_picture(
    bins: dict[str, Any], who: str = "", kinds: tuple[str, ...] = _KINDS, alpha: Real | None = None
) -> Picture | None:
    """Return the histogram of the scores of one or two kinds of rows, with the threshold."""
    counts = {k: bins[f"counts_{own}"] for k, own in zip(kinds, _KINDS, strict=False)}
    beyond = {k: bins[f"beyond_{own}"] for k, own in zip(kinds, _KINDS, strict=False)}
    if len(bins["edges"]) < 2:
        return None
    ends = list(pairwise(bins["edges"]))
    bars = [bar for kind in kinds for bar in _bars(kind, ends, counts[kind], beyond[kind])]
    rows = tuple((*end, *(counts[k][i] for k in kinds)) for i, end in enumerate(ends))
    limit = bins.get("threshold")
    message = f"Scores of {' and '.join(f'{k} rows' for k in kinds)}"
    message += f": {who}" if who else ""
    note = "Fraction of rows in each bin; higher scores are more anomalous."
    if limit is not None:
        rate = "" if alpha is None else f" at a false-alarm rate of {share(alpha)}"
        note += f" Dashed: the threshold{rate}, {number(limit)}."
    note += " The bins widen to the right by a constant factor." if bins["log"] else ""
    lost = [f"{plural(n, f'{kind} row')}" for kind, n in beyond.items() if n]
    note += f" Not drawn: infinite scores of {' and '.join(lost)}." if lost else ""

    def draw(width: int) -> Chart:
        x = ChartAxis("a", title="score", log=bins["log"])
        y = ChartAxis("v", title="", share=True)
        return histogram(message, bars, x, "b", y, by="k" if len(kinds) > 1 else "", limit=limit)

    return Picture("scores", message, draw, Numbers(("from", "to", *kinds), rows, "scores"), note)


def _bars(kind: str, ends: list[tuple[Real, Real]], counts: list[int], beyond: int) -> Rows:
    total = sum(counts) + beyond or 1
    bars = []
    for (low, high), count in zip(ends, counts, strict=True):
        if count:
            text = tip(
                f"{number(low)} to {number(high)}", f"{kind} {count:,}", share(count / total)
            )
            bars.append({"a": low, "b": high, "v": count / total, "k": kind, "tip": text})
    return bars


def roc_picture(curve: dict[str, Any], who: str = "", auroc: str = "") -> Picture:
    """Return the ROC curve: detection rate against false-alarm rate."""
    steps = [
        {"x": x, "v": y, "i": i, "tip": tip(f"false alarms {share(x)}", f"found {share(y)}")}
        for i, (x, y) in enumerate(zip(curve["fpr"], curve["tpr"], strict=True))
    ]
    heights = zip(curve["grid"], curve["low"], curve["high"], strict=True)
    ends = [{"x": x, "lo": low, "hi": high} for x, low, high in heights]
    message = "Fraction of out-of-distribution rows detected, by false-alarm rate"
    message += f": {who}" if who else ""
    message += f", AUROC {auroc}" if auroc else ""
    note = "Dashed: uninformative scores."
    note += " The band contains 95 % of the curves over resampled groups." if ends else ""
    rows = tuple((p["x"], p["v"]) for p in _few(steps))

    def draw(width: int) -> Chart:
        return _roc(message, steps, ends, width)

    numbers = Numbers(("false alarms", "found"), rows, "roc")
    return Picture("roc", message, draw, numbers, note, square=True)


def _few(points: Rows) -> Rows:
    step = max(1, -(-len(points) // _MOST_ROWS))
    kept = points[::step]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _roc(message: str, steps: Rows, ends: Rows, width: int) -> Chart:
    x = ChartAxis("x", title="false alarms among in-distribution rows", low=0, high=1, share=True)
    y = ChartAxis("v", title="", low=0, high=1, share=True)
    blind = [{"x": 0, "v": 0}, {"x": 1, "v": 1}]
    dash = {"color": "var(--soft)", "strokeDash": [5, 4], "strokeWidth": 1.5, "aria": False}
    drawn = [curves(message, blind, x, y, dots=False, **dash)]
    if ends:
        edges = [{**end, "v": end["lo"]} for end in ends]
        drawn.append(curves(message, edges, x, y, bands=[("lo", "hi")], dots=False, opacity=0))
    bare = [{k: v for k, v in step.items() if k != "tip"} for step in steps]
    drawn.append(curves(message, bare, x, y, dots=False, order="i", aria=False))
    drawn.append(marks(message, _few(steps), x, y, size=24))
    side = min(width, 480)
    return overlaid(*drawn) | {"height": side - 74, "width": side - 74}


def auroc_picture(rows: list[dict[str, Any]], instrument: str = "") -> Picture | None:
    """Return the AUROC at each site of one detector, with intervals."""
    axis = Axis.of([row["site"] for row in rows])
    kept = [r for r in rows if r["auroc"] is not None and r["site"] in axis.names]
    if not kept:
        return None
    dots = [_point(row, axis) for row in kept]
    best = max(kept, key=lambda row: row["auroc"])
    message = f"{shown(instrument, 40)}: " if instrument else ""
    message += f"best at {axis.say(best['site'])}, AUROC {auroc_text(best)}"
    message += ", optimistic because it was chosen on these rows" if len(kept) > 1 else ""
    table = tuple(
        tuple(row[k] for k in ("site", "auroc", "auroc_low", "auroc_high")) for row in rows
    )

    def draw(width: int) -> Chart:
        return auroc_chart(message, dots, axis, [{"value": 0.5, "tip": "0.5 · no information"}])

    numbers = Numbers(("site", "auroc", "low", "high"), table, "auroc by site")
    note = (
        "Sites in order of execution; bars are 95 % intervals. Dashed: 0.5, uninformative scores."
    )
    return Picture("auroc", message, draw, numbers, note)


def auroc_text(row: dict[str, Any]) -> str:
    """Format the AUROC of a table row with its interval."""
    ends = row["auroc_low"], row["auroc_high"]
    text = number(row["auroc"])
    return text if None in ends else f"{text} ({number(ends[0])} to {number(ends[1])})"


def _point(row: dict[str, Any], axis: Axis) -> dict[str, Any]:
    value = row["auroc"]
    ends = (row["auroc_low"], row["auroc_high"])
    low, high = (value if end is None else end for end in ends)
    text = tip(row["site"], f"AUROC {auroc_text(row)}")
    return {"s": axis.names[row["site"]], "v": value, "lo": low, "hi": high, "tip": text}


def auroc_chart(message: str, dots: Rows, axis: Axis, levels: Rows) -> Chart:
    """Return AUROCs with their intervals, on an axis that ends at 1."""
    floor = min(0.45, *(dot["lo"] for dot in dots), *(level["value"] for level in levels))
    y = ChartAxis("v", title="", low=floor, high=1.0)
    look = {"low": "lo", "high": "hi", "levels": levels, "size": 70}
    return marks(message, dots, axis.across(), y, **look)
