"""DATA against OTHER by depth, their scores, and the map of rows."""

from collections import Counter
from itertools import pairwise
from typing import Any, Final

import altair as alt

from sonde.report._axes import (
    OKABE_ITO,
    SHAPES,
    Rows,
    along,
    dots,
    layer,
    level_rules,
    sized,
    tip,
    x_sites,
    y_axis,
)
from sonde.report._format import Real, number, p_text, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report._versus_words import beyond_threshold, surest_alarm, told_apart

_RULES: Final = ((0.5, "no difference"), (0.6, "a note above"), (0.75, "a warning above"))
_CATEGORIES: Final = 7


def shift_picture(versus: dict[str, Any]) -> Picture | None:
    """Return the AUROC of DATA against OTHER at each site with its interval."""
    axis = Axis.of([row["site"] for row in versus["sites"]])
    rows = [r for r in versus["sites"] if r["auroc"] is not None and r["site"] in axis.names]
    if not rows:
        return None
    points = [_shift_point(row, axis) for row in rows]
    length = versus["length_auroc"]
    note = "0.5 is no difference, 1 is certain. Dashed: 0.5, and where a note and a warning begin."
    note += "" if length is None else f" Dotted: the length of the input alone ({number(length)})."
    columns = ("site", "auroc", "low", "high", "p")
    table = tuple(tuple(row[key] for key in columns) for row in versus["sites"])

    def draw(width: int) -> Any:
        return _shift(points, length, axis, width)

    return Picture(
        "shift", told_apart(rows, axis.say), draw, Numbers(columns, table, "shift"), note
    )


def _shift_point(row: dict[str, Any], axis: Axis) -> dict[str, Any]:
    value = row["auroc"]
    low, high = (value if row[end] is None else row[end] for end in ("low", "high"))
    ends = f"{number(low)} to {number(high)}"
    text = tip(row["site"], f"AUROC {number(value)}", ends, *_p(row))
    return {"s": axis.names[row["site"]], "v": value, "lo": low, "hi": high, "t": text}


def _p(row: dict[str, Any]) -> list[str]:
    return [] if row["p"] is None else [f"p {p_text(row['p'])}"]


def _shift(points: Rows, length: Real | None, axis: Axis, width: int) -> Any:
    x = x_sites(axis.labels, width, axis.title)
    lows: list[Real] = [0.45, *(p["lo"] for p in points), *([] if length is None else [length])]
    floor = min(lows)
    y = alt.Y("v:Q", scale=alt.Scale(domain=[floor, 1.0], nice=False), axis=y_axis())
    limits = [{"v": value, "t": tip(number(value), name)} for value, name in _RULES]
    layers = [level_rules(limits, y)]
    if length is not None:
        dotted = [{"v": length, "t": f"length alone · AUROC {number(length)}"}]
        look = {"strokeDash": [1, 4], "strokeWidth": 2.5, "color": "var(--c3)"}
        layers.append(level_rules(dotted, y, **look))
    bars = layer(points).mark_rule(color="var(--c1)", strokeWidth=4, opacity=0.4, aria=False)
    layers.append(bars.encode(x=x, y=along(y, "lo"), y2=alt.Y2("hi:Q")))
    return sized([*layers, dots(points, x, y, color="var(--c1)", size=70)], width, 220)


def scores_picture(versus: dict[str, Any]) -> Picture | None:
    """Return two histograms of one score on one axis, with the threshold."""
    scores, alarm = versus["scores"], surest_alarm(versus)
    if scores is None or len(scores["edges"]) < 2:
        return None
    bins = list(pairwise(scores["edges"]))
    bars = _bars("DATA", bins, scores["counts_data"]) + _bars("OTHER", bins, scores["counts_other"])
    table = tuple(
        (*ends, data, other)
        for ends, data, other in zip(
            bins, scores["counts_data"], scores["counts_other"], strict=False
        )
    )
    message = "Scores of DATA and OTHER, higher = more unusual"
    if alarm is not None and alarm["rate"] is not None:
        message = beyond_threshold(alarm, lambda site: shown(site, 60))

    def draw(width: int) -> Any:
        return _scores(bars, scores["threshold"], width)

    note = "Share of each data set in each bin, the last with all above it; the line is the "
    note += "calibrated threshold."
    numbers = Numbers(("from", "to", "DATA", "OTHER"), table, "scores")
    return Picture("scores", message, draw, numbers, note)


def _bars(kind: str, bins: list[tuple[Real, Real]], counts: list[int]) -> Rows:
    total = sum(counts) or 1
    bars = []
    for (low, high), count in zip(bins, counts, strict=False):
        said = f"{count:,} ({share(count / total)})"
        text = tip(f"{number(low)} to {number(high)}", f"{kind} {said}")
        bars.append({"a": low, "b": high, "v": count / total, "k": kind, "t": text})
    return bars


def _scores(bars: Rows, limit: Real | None, width: int) -> Any:
    scale = alt.Scale(domain=["DATA", "OTHER"], range=["var(--c1)", "var(--c2)"])
    look = alt.Axis(title="score", format=",.3~r")
    x = alt.X("a:Q", axis=look, scale=alt.Scale(zero=False, nice=False))
    y = alt.Y("v:Q", stack=None, axis=y_axis(percent=True, tickCount=4))
    said, end = alt.Description("t:N"), alt.X2("b:Q")
    shape = layer(bars).mark_bar(opacity=0.55)
    color = alt.Color("k:N", scale=scale)
    layers = [shape.encode(x=x, x2=end, y=y, y2=alt.datum(0), color=color, description=said)]
    if limit is not None:
        line = layer([{"a": limit, "t": f"threshold · {number(limit)}"}])
        line = line.mark_rule(color="var(--ink)", strokeWidth=2, strokeDash=[6, 3])
        layers.append(line.encode(x=alt.X("a:Q"), description=said))
    return sized(layers, width, 220)


def rows_picture(plane: dict[str, Any]) -> Picture | None:
    """Return the rows along the two main directions of one site."""
    points = plane["points"]
    if len(points) < 2:
        return None
    domain, kept = _categories([point["label"] for point in points])
    values = []
    for point in points:
        label = shown(point["label"], 40) if point["label"] in kept else domain[-1]
        text = tip(point["id"], point["label"] or "")
        values.append({"x": point["x"], "y": point["y"], "k": label, "t": text})
    message = f"{len(points):,} rows at {shown(plane['site'], 60)} along their two main directions"
    if len(plane["axes"]) == 2:
        first, second = (share(axis, 2) for axis in plane["axes"])
        message += f", which hold {first} and {second} of the variance"

    def draw(width: int) -> Any:
        return _scatter(values, domain, width)

    note = "Rows that lie together here may be far apart along other directions."
    table = tuple((p["id"], p["label"], p["x"], p["y"]) for p in points)
    numbers = Numbers(("id", plane["by"], "x", "y"), table, "rows")
    return Picture("map", message, draw, numbers, note, square=True)


def _categories(labels: list[str | None]) -> tuple[list[str], set[str]]:
    """Return the names in the legend, and the labels that have one of their own."""
    common = [label for label, _ in Counter(filter(None, labels)).most_common()]
    kept = common if len(common) <= _CATEGORIES else common[: _CATEGORIES - 1]
    names = list(dict.fromkeys(shown(label, 40) for label in sorted(kept)))
    whole = len(kept) == len(common) and None not in labels and "" not in labels
    return (names if whole else [*names, "other" if names else "rows"]), set(kept)


def _scatter(values: Rows, domain: list[str], width: int) -> Any:
    side = min(width - 12, 560)
    scale = alt.Scale(domain=domain, range=list(OKABE_ITO[: len(domain)]))
    shapes = alt.Scale(domain=domain, range=list((SHAPES * 2)[: len(domain)]))
    bare = alt.Axis(labels=False, ticks=False, grid=False, title=None, domain=False)
    chart = layer(values).mark_point(filled=True, size=42, opacity=0.8)
    chart = chart.encode(
        x=alt.X("x:Q", axis=bare, scale=alt.Scale(zero=False)),
        y=alt.Y("y:Q", axis=bare, scale=alt.Scale(zero=False)),
        color=alt.Color("k:N", scale=scale),
        shape=alt.Shape("k:N", scale=shapes),
        description=alt.Description("t:N"),
    )
    return chart.properties(width=side, height=round(side * 0.75))
