"""Scores of usual and unusual rows: their histogram, the ROC curve, AUROC by site."""

from itertools import pairwise
from typing import Any, Final

import altair as alt

from sonde.report._axes import (
    MARGIN,
    Rows,
    along,
    band,
    dots,
    layer,
    level_rules,
    sized,
    tip,
    x_sites,
    y_axis,
)
from sonde.report._format import Real, number, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.run.instruments.entries import place_of

_KINDS: Final = ("usual", "unusual")
_HEIGHT: Final = 220
_MOST_ROWS: Final = 60


def named(instrument: str, site: str) -> str:
    """Return a method and its site as a sentence names them."""
    place = shown(place_of(instrument, site), 60).removesuffix(":out")
    return f"{shown(instrument, 40)} at {place}"


def histogram_picture(
    bins: dict[str, Any], who: str = "", kinds: tuple[str, ...] = _KINDS, alpha: Real | None = None
) -> Picture | None:
    """Return the scores of one or two kinds of rows on one axis, with the threshold."""
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
    note = "Share of rows in each bin; higher scores are more unusual."
    if limit is not None:
        said = "" if alpha is None else f" at a false-alarm rate of {share(alpha)}"
        note += f" Dashed: the threshold{said}, {number(limit)}."
    note += " The bins widen to the right by one factor." if bins["log"] else ""
    lost = [f"{plural(n, f'{kind} row')}" for kind, n in beyond.items() if n]
    note += f" Not drawn: infinite scores of {' and '.join(lost)}." if lost else ""

    def draw(width: int) -> Any:
        return _histogram(bars, kinds, limit, bins["log"], width)

    return Picture("scores", message, draw, Numbers(("from", "to", *kinds), rows, "scores"), note)


def _bars(kind: str, ends: list[tuple[Real, Real]], counts: list[int], beyond: int) -> Rows:
    total = sum(counts) + beyond or 1
    bars = []
    for (low, high), count in zip(ends, counts, strict=True):
        if count:
            text = tip(
                f"{number(low)} to {number(high)}", f"{kind} {count:,}", share(count / total)
            )
            bars.append({"a": low, "b": high, "v": count / total, "k": kind, "t": text})
    return bars


def _histogram(
    bars: Rows, kinds: tuple[str, ...], limit: Real | None, log: bool, width: int
) -> Any:
    colors = ["var(--c1)", "var(--c2)"][: len(kinds)]
    legend = alt.Legend() if len(kinds) > 1 else None
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False, nice=False)
    x = alt.X(
        "a:Q",
        axis=alt.Axis(title="score", format=",.3~r", labelOverlap=True, labelSeparation=6),
        scale=scale,
    )
    y = alt.Y("v:Q", stack=None, axis=y_axis(percent=True, tickCount=4))
    color = alt.Color("k:N", scale=alt.Scale(domain=list(kinds), range=colors), legend=legend)
    said = alt.Description("t:N")
    shape = layer(bars).mark_bar(opacity=0.55)
    layers = [
        shape.encode(x=x, x2=alt.X2("b:Q"), y=y, y2=alt.datum(0), color=color, description=said)
    ]
    if limit is not None:
        line = layer([{"a": limit, "t": f"threshold · {number(limit)}"}])
        line = line.mark_rule(color="var(--ink)", strokeWidth=2, strokeDash=[6, 3])
        layers.append(line.encode(x=alt.X("a:Q", scale=scale), description=said))
    return sized(layers, width, _HEIGHT)


def roc_picture(curve: dict[str, Any], who: str = "", auroc: str = "") -> Picture:
    """Return the share of unusual rows that are found at each share of false alarms."""
    points = [
        {"x": x, "v": y, "t": tip(f"false alarms {share(x)}", f"found {share(y)}")}
        for x, y in zip(curve["fpr"], curve["tpr"], strict=True)
    ]
    heights = zip(curve["grid"], curve["low"], curve["high"], strict=True)
    ends = [{"x": x, "lo": low, "hi": high} for x, low, high in heights]
    message = "Share of unusual rows found, by the rate of false alarms"
    message += f": {who}" if who else ""
    message += f", AUROC {auroc}" if auroc else ""
    note = "Dashed: scores that tell nothing."
    note += " The band holds 95 % of curves over resampled groups." if ends else ""
    rows = tuple((p["x"], p["v"]) for p in _few(points))

    def draw(width: int) -> Any:
        return _roc(points, ends, width)

    numbers = Numbers(("false alarms", "found"), rows, "roc")
    return Picture("roc", message, draw, numbers, note, square=True)


def _few(points: Rows) -> Rows:
    step = max(1, -(-len(points) // _MOST_ROWS))
    kept = points[::step]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _roc(points: Rows, ends: Rows, width: int) -> Any:
    side = min(width, 480)
    axis = alt.Axis(title="false alarms among usual rows", format=".3~p", tickCount=5, grid=True)
    x = alt.X("x:Q", axis=axis, scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("v:Q", axis=y_axis(percent=True), scale=alt.Scale(domain=[0, 1]))
    blind = [{"x": 0, "v": 0}, {"x": 1, "v": 1}]
    dash = layer(blind).mark_line(
        color="var(--soft)", strokeDash=[5, 4], strokeWidth=1.5, aria=False
    )
    numbered = [{**p, "i": i} for i, p in enumerate(points)]
    path = layer(numbered).mark_line(color="var(--c1)", strokeWidth=2, aria=False)
    layers = [dash.encode(x=x, y=y), path.encode(x=x, y=y, order=alt.Order("i:Q"))]
    layers.append(dots(_few(points), x, y, color="var(--c1)", size=24))
    return sized([*([band(ends, x, y)] if ends else []), *layers], side, side - MARGIN)


def auroc_picture(rows: list[dict[str, Any]], instrument: str = "") -> Picture | None:
    """Return the AUROC at each site of one detector, with intervals."""
    axis = Axis.of([row["site"] for row in rows])
    kept = [r for r in rows if r["auroc"] is not None and r["site"] in axis.names]
    if not kept:
        return None
    points = [_point(row, axis) for row in kept]
    best = max(kept, key=lambda row: row["auroc"])
    message = f"{shown(instrument, 40)}: " if instrument else ""
    message += f"best at {axis.say(best['site'])}, AUROC {auroc_text(best)}"
    message += ", optimistic because chosen on these rows" if len(kept) > 1 else ""
    table = tuple(
        tuple(row[k] for k in ("site", "auroc", "auroc_low", "auroc_high")) for row in rows
    )

    def draw(width: int) -> Any:
        return _aurocs(points, axis, width)

    numbers = Numbers(("site", "auroc", "low", "high"), table, "auroc by site")
    note = "Sites in order; bars are 95 % intervals. Dashed: 0.5, scores that tell nothing."
    return Picture("auroc", message, draw, numbers, note)


def auroc_text(row: dict[str, Any]) -> str:
    """Return the AUROC of a row with its interval."""
    ends = row["auroc_low"], row["auroc_high"]
    text = number(row["auroc"])
    return text if None in ends else f"{text} ({number(ends[0])} to {number(ends[1])})"


def _point(row: dict[str, Any], axis: Axis) -> dict[str, Any]:
    value = row["auroc"]
    ends = (row["auroc_low"], row["auroc_high"])
    low, high = (value if end is None else end for end in ends)
    text = tip(row["site"], f"AUROC {auroc_text(row)}")
    return {"s": axis.names[row["site"]], "v": value, "lo": low, "hi": high, "t": text}


def _aurocs(points: Rows, axis: Axis, width: int) -> Any:
    x = x_sites(axis.labels, width, axis.title)
    floor = min(0.45, *(p["lo"] for p in points))
    y = alt.Y("v:Q", scale=alt.Scale(domain=[floor, 1.0], nice=False), axis=y_axis())
    layers = [level_rules([{"v": 0.5, "t": "0.5 · tells nothing"}], y)]
    bars = layer(points).mark_rule(color="var(--c1)", strokeWidth=4, opacity=0.4, aria=False)
    layers.append(bars.encode(x=x, y=along(y, "lo"), y2=alt.Y2("hi:Q")))
    return sized([*layers, dots(points, x, y, color="var(--c1)", size=70)], width, _HEIGHT)
