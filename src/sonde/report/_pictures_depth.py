"""Depth profile: one small panel for each figure, over the sites in order of execution."""

from dataclasses import dataclass
from typing import Any, Final, final

import altair as alt

from sonde.report._draw import MARKS, tip, x_sites
from sonde.report._format import number, plural, quantity, share, shown
from sonde.report._picture import Axis, Numbers, Picture

_Z: Final = 1.96


@final
@dataclass(frozen=True)
class Panel:
    """One figure by depth: how it is named and scaled, its limit, the findings drawn on it."""

    name: str
    title: str
    unit: str
    log: bool
    codes: tuple[str, ...]
    limit: float | None = None


PANELS: Final = (
    Panel("median_norm", "Norm of the median row", "", True, ("SND021", "SND017", "SND016")),
    Panel("spread", "Spread between rows", "", True, ("SND023", "SND002")),
    Panel("participation_ratio", "Directions in use", "", False, ("SND022", "SND027")),
    Panel("update_per_spread", "What a block changes", "share", True, ("SND025", "SND026"), 0.05),
    Panel("dead_share", "Dead units", "share", False, ("SND011", "SND013")),
)


def depth_pictures(report: dict[str, Any]) -> list[Picture]:
    """Return a panel for each figure that at least two sites have."""
    axis = Axis.of([row["site"] for row in report["sites"]])
    pictures = []
    for panel in PANELS:
        points = _points(report, panel, axis)
        if len(points) >= 2:
            pictures.append(_panel(panel, points, axis))
    return pictures


def depth_numbers(report: dict[str, Any]) -> Numbers:
    """Return every figure of every drawn site."""
    kept = set(Axis.of([row["site"] for row in report["sites"]]).sites)
    names: dict[str, None] = {}
    for row in report["sites"]:
        names |= dict.fromkeys(row["values"])
    columns = ["site", "module", "reducer", "dim", "rows", "nonfinite"]
    for name in names:
        columns += [name, f"{name} se"]
    rows = []
    for row in report["sites"]:
        if row["site"] not in kept:
            continue
        cells = [row[k] for k in ("site", "module", "reducer", "dim", "n_rows", "n_nonfinite")]
        for name in names:
            value = row["values"].get(name, {})
            cells += [value.get("value"), value.get("se")]
        rows.append(tuple(cells))
    return Numbers(tuple(columns), tuple(rows), "sites")


def _points(report: dict[str, Any], panel: Panel, axis: Axis) -> list[dict[str, Any]]:
    marks = _marks(report["findings"], panel.codes)
    points = []
    for row in report["sites"]:
        number_ = row["values"].get(panel.name)
        if row["site"] not in axis.names or number_ is None or number_["value"] is None:
            continue
        value, se = number_["value"], number_.get("se")
        if panel.log and value <= 0:
            continue
        half = _Z * se if se else 0.0
        low = max(value - half, value / 10) if panel.log else value - half
        level, code = marks.get(row["site"], (None, ""))
        text = [row["site"], quantity(value, panel.unit)]
        text += (
            [f"{quantity(low, panel.unit)} to {quantity(value + half, panel.unit)}"] if se else []
        )
        text += [plural(row["n_rows"], "row"), code]
        point = {"s": axis.names[row["site"]], "site": row["site"], "v": value, "lo": low}
        points.append(point | {"hi": value + half, "t": tip(*text), "level": level})
    return points


def _marks(findings: list[dict[str, Any]], codes: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for finding in reversed(findings):
        if finding["code"] in codes and not finding["ignored"]:
            found |= dict.fromkeys(finding["sites"], (finding["level"], finding["code"]))
    return found


def _panel(panel: Panel, points: list[dict[str, Any]], axis: Axis) -> Picture:
    def draw(width: int) -> Any:
        return panel_chart(panel, points, axis, width)

    note = (
        f"Dashed: {share(panel.limit)}, below which it counts as almost nothing."
        if panel.limit
        else ""
    )
    return Picture(f"depth-{panel.name}", _message(panel, points), draw, note=note)


def panel_chart(
    panel: Panel, points: list[dict[str, Any]], axis: Axis, width: int, color: str = "var(--c1)"
) -> Any:
    """Return one line with its band, limit and finding marks."""
    x = x_sites(axis.labels, width, axis.title)
    scale = alt.Scale(type="log", nice=True) if panel.log else alt.Scale(zero=True)
    form = "~%" if panel.unit == "share" else "~g"
    ticks = alt.Axis(title=None, tickCount=4, format=form, minExtent=58, maxExtent=58)
    y = alt.Y("v:Q", scale=scale, axis=ticks)
    base = alt.Chart(alt.Data(values=points))
    layers = [
        base.mark_area(opacity=0.22, color=color, aria=False).encode(x=x, y="lo:Q", y2="hi:Q"),
        base.mark_line(color=color, strokeWidth=2, aria=False).encode(x=x, y=y),
        base.mark_point(color=color, filled=True, size=46, opacity=1).encode(
            x=x, y=y, description="t:N"
        ),
    ]
    if panel.limit is not None:
        rule = alt.Chart(alt.Data(values=[{"v": panel.limit}]))
        layers.insert(
            0, rule.mark_rule(strokeDash=[5, 4], color="var(--soft)", aria=False).encode(y="v:Q")
        )
    for level, shape in MARKS.items():
        hit = [point for point in points if point["level"] == level]
        if hit:
            mark = alt.Chart(alt.Data(values=hit)).mark_point(
                shape=shape, size=130, filled=True, opacity=1, color=f"var(--{level})"
            )
            layers.append(mark.encode(x=x, y="v:Q", description="t:N"))
    return alt.layer(*layers).properties(width=width - 74, height=132)


def _message(panel: Panel, points: list[dict[str, Any]]) -> str:
    low, high = min(points, key=lambda p: p["v"]), max(points, key=lambda p: p["v"])
    ends = f"{quantity(points[0]['v'], panel.unit)} at {shown(points[0]['site'], 60)}"
    ends += f" to {quantity(points[-1]['v'], panel.unit)} at {shown(points[-1]['site'], 60)}"
    factor = f"{number(high['v'] / low['v'])} times" if low["v"] > 0 else "any amount"
    lowest = f"{quantity(low['v'], panel.unit)} at {shown(low['site'], 60)}"
    highest = f"{quantity(high['v'], panel.unit)} at {shown(high['site'], 60)}"
    if panel.name == "median_norm":
        return f"Norm of the median row: {ends}; largest over smallest {factor}"
    if panel.name == "spread":
        return f"Spread between rows: {ends}; smallest {lowest}"
    if panel.name == "participation_ratio":
        return f"Directions in use (participation ratio of the correlations): fewest {lowest}, most {highest}"
    if panel.name == "update_per_spread":
        small = sum(p["v"] < (panel.limit or 0) for p in points)
        head = f"{plural(small, 'block')} of {len(points)} change{'s' if small == 1 else ''} less than "
        head += f"{share(panel.limit)} of the spread" if panel.limit else ""
        head = head if small else f"Every block changes at least {share(low['v'])} of the spread"
        return f"{head}; least {lowest}"
    return (
        f"Dead or constant units: at most {highest}"
        if high["v"] > 0
        else "No dead or constant unit"
    )
