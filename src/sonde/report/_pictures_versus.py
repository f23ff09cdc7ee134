"""DATA against OTHER by depth, their scores, and the map of rows."""

from collections import Counter
from typing import Any, Final

import altair as alt

from sonde.report._draw import OKABE_ITO, SHAPES, tip, x_sites
from sonde.report._format import number, share, shown
from sonde.report._picture import Axis, Numbers, Picture

_RULES: Final = ((0.5, "no difference"), (0.6, "note"), (0.75, "warning"))
_CATEGORIES: Final = 7


def shift_picture(versus: dict[str, Any]) -> Picture | None:
    """Return the AUROC of DATA against OTHER at each site with its interval."""
    rows = [row for row in versus["sites"] if row["auroc"] is not None]
    if not rows:
        return None
    axis = Axis.of([row["site"] for row in rows])
    points = []
    for row in rows:
        low = row["auroc"] if row["low"] is None else row["low"]
        high = row["auroc"] if row["high"] is None else row["high"]
        text = tip(
            row["site"],
            f"AUROC {number(row['auroc'])}",
            f"{number(low)} to {number(high)}",
            f"p = {number(row['p'], 1)}",
        )
        if row["site"] in axis.names:
            points.append(
                {"s": axis.names[row["site"]], "v": row["auroc"], "lo": low, "hi": high, "t": text}
            )
    best = max(rows, key=lambda row: row["auroc"])
    message = f"DATA and OTHER are told apart best at {shown(best['site'], 60)}: AUROC {number(best['auroc'])}"
    message += "" if best["low"] is None else f" ({number(best['low'])} to {number(best['high'])})"
    if best["low"] is not None and best["low"] <= 0.6:
        message = f"No site tells DATA and OTHER apart for certain; highest AUROC {number(best['auroc'])} at {shown(best['site'], 60)}"
    length = versus["length_auroc"]
    note = "0.5 is no difference, 1 is certain. Dashed: 0.5, and where a note and a warning begin."
    note += (
        ""
        if length is None
        else f" Dotted: what the length of the input alone tells ({number(length)})."
    )
    table = tuple(
        tuple(row[k] for k in ("site", "auroc", "low", "high", "p")) for row in versus["sites"]
    )

    def draw(width: int) -> Any:
        return _shift(points, length, axis, width)

    return Picture(
        "shift", message, draw, Numbers(("site", "auroc", "low", "high", "p"), table, "shift"), note
    )


def _shift(points: list[dict[str, Any]], length: float | None, axis: Axis, width: int) -> Any:
    x = x_sites(axis.labels, width, axis.title)
    floor = min([0.45, *(p["lo"] for p in points), *([length] if length is not None else [])])
    look = alt.Axis(title=None, tickCount=5, format="~g", minExtent=58, maxExtent=58)
    y = alt.Y("v:Q", scale=alt.Scale(domain=[floor, 1.0], nice=False), axis=look)
    base = alt.Chart(alt.Data(values=points))
    rules = [{"v": value, "t": tip(number(value), name)} for value, name in _RULES]
    flat = alt.Chart(alt.Data(values=rules)).mark_rule(
        strokeDash=[5, 4], color="var(--soft)", opacity=0.7
    )
    layers = [flat.encode(y=y, description="t:N")]
    if length is not None:
        dotted = alt.Chart(
            alt.Data(values=[{"v": length, "t": f"length alone · AUROC {number(length)}"}])
        )
        layers.append(
            dotted.mark_rule(strokeDash=[1, 4], strokeWidth=2, color="var(--c3)").encode(
                y="v:Q", description="t:N"
            )
        )
    layers += [
        base.mark_rule(color="var(--c1)", strokeWidth=3, opacity=0.45, aria=False).encode(
            x=x, y="lo:Q", y2="hi:Q"
        ),
        base.mark_point(color="var(--c1)", filled=True, size=60, opacity=1).encode(
            x=x, y=y, description="t:N"
        ),
    ]
    return alt.layer(*layers).properties(width=width - 74, height=220)


def scores_picture(versus: dict[str, Any]) -> Picture | None:
    """Return two histograms of one score on one axis, with the threshold."""
    scores = versus["scores"]
    if scores is None or len(scores["edges"]) < 2:
        return None
    edges, limit = scores["edges"], scores["threshold"]
    bars, table = [], []
    for kind, key in (("DATA", "counts_data"), ("OTHER", "counts_other")):
        total = sum(scores[key]) or 1
        for low, high, count in zip(edges, edges[1:], scores[key], strict=False):
            text = tip(
                f"{number(low)} to {number(high)}", f"{kind} {count:,}", share(count / total)
            )
            bars.append({"a": low, "b": high, "v": count / total, "k": kind, "t": text})
    for low, high, data, other in zip(
        edges, edges[1:], scores["counts_data"], scores["counts_other"], strict=False
    ):
        table.append((low, high, data, other))
    alarm = versus["alarm"]
    message = "Scores of DATA and OTHER, higher = more unusual"
    if alarm is not None and alarm["rate"] is not None:
        message = f"{share(alarm['rate'])} of OTHER lie beyond the threshold that {share(alarm['alpha'])} of rows like DATA exceed"
    note = "Share of each data set in each bin; the line is the calibrated threshold."

    def draw(width: int) -> Any:
        return _scores(bars, limit, width)

    return Picture(
        "scores",
        message,
        draw,
        Numbers(("from", "to", "DATA", "OTHER"), tuple(table), "scores"),
        note,
    )


def _scores(bars: list[dict[str, Any]], limit: float | None, width: int) -> Any:
    color = alt.Color(
        "k:N", scale=alt.Scale(domain=["DATA", "OTHER"], range=["var(--c1)", "var(--c2)"])
    )
    x = alt.X(
        "a:Q", axis=alt.Axis(title="score", format="~g"), scale=alt.Scale(zero=False, nice=False)
    )
    y = alt.Y(
        "v:Q",
        stack=None,
        axis=alt.Axis(title=None, format="~%", tickCount=4, minExtent=58, maxExtent=58),
    )
    base = alt.Chart(alt.Data(values=bars)).mark_bar(opacity=0.55)
    layers = [base.encode(x=x, x2="b:Q", y=y, color=color, description="t:N")]
    if limit is not None:
        line = alt.Chart(alt.Data(values=[{"a": limit, "t": f"threshold · {number(limit)}"}]))
        layers.append(
            line.mark_rule(color="var(--ink)", strokeWidth=2, strokeDash=[6, 3]).encode(
                x="a:Q", description="t:N"
            )
        )
    return alt.layer(*layers).properties(width=width - 74, height=220)


def rows_picture(map_: dict[str, Any]) -> Picture | None:
    """Return the rows along the two main directions of one site."""
    points = map_["points"]
    if len(points) < 2:
        return None
    common = [label for label, _ in Counter(p["label"] for p in points if p["label"]).most_common()]
    kept = common if len(common) <= _CATEGORIES else common[: _CATEGORIES - 1]
    names = [shown(label, 40) for label in sorted(kept)]
    rest = [] if len(kept) == len(common) else ["other"]
    values = []
    for point in points:
        label = shown(point["label"], 40) if point["label"] in kept else (rest or ["rows"])[0]
        text = tip(point["id"], point["label"] or "")
        values.append({"x": point["x"], "y": point["y"], "k": label, "t": text})
    domain = names + rest if names else ["rows"]
    axes = [share(axis, 2) for axis in map_["axes"]]
    message = f"{len(points):,} rows at {shown(map_['site'], 60)} along their two main directions"
    if len(axes) == 2:
        message += f", which hold {axes[0]} and {axes[1]} of the variance"
    table = tuple((p["id"], p["label"], p["x"], p["y"]) for p in points)

    def draw(width: int) -> Any:
        return _scatter(values, domain, width)

    note = "Two directions cannot show everything that separates rows: what lies together here may be far apart in others."
    return Picture(
        "map",
        message,
        draw,
        Numbers(("id", map_["by"], "x", "y"), table, "rows"),
        note,
        square=True,
    )


def _scatter(values: list[dict[str, Any]], domain: list[str], width: int) -> Any:
    side = min(width - 20, 520)
    marks = (SHAPES * 2)[: len(domain)]
    color = alt.Color("k:N", scale=alt.Scale(domain=domain, range=list(OKABE_ITO[: len(domain)])))
    shape = alt.Shape("k:N", scale=alt.Scale(domain=domain, range=list(marks)))
    bare = alt.Axis(labels=False, ticks=False, grid=False, title=None)
    base = alt.Chart(alt.Data(values=values)).mark_point(filled=True, size=42, opacity=0.8)
    chart = base.encode(
        x=alt.X("x:Q", axis=bare, scale=alt.Scale(zero=False)),
        y=alt.Y("y:Q", axis=bare, scale=alt.Scale(zero=False)),
        color=color,
        shape=shape,
        description="t:N",
    )
    return chart.properties(width=side, height=round(side * 0.75))
