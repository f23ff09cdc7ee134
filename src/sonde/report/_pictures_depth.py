"""Depth profile: a small panel for each statistic, over the sites in order of execution."""

from dataclasses import dataclass
from typing import Any, Final, final

from sonde.core.chart import Chart, ChartAxis, curves, marks, overlaid
from sonde.findings.catalogue import rule_classes
from sonde.report._fit import MARKS, Rows, tip
from sonde.report._format import Real, number, plural, quantity, share
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report._versus_words import sides

_Z: Final = 1.96


@final
@dataclass(frozen=True)
class Panel:
    """One statistic by depth: its scale and its limit."""

    name: str
    unit: str
    log: bool
    limit: Real | None = None


PANELS: Final = (
    Panel("median_norm", "", True),
    Panel("spread", "", True),
    Panel("participation_ratio", "", False),
    Panel("update_per_spread", "share", True, 0.05),
    Panel("dead_share", "share", False),
)


def depth_pictures(report: dict[str, Any]) -> list[Picture]:
    """Return a panel for each statistic that at least two sites have."""
    axis = Axis.of_layers([row["site"] for row in report["sites"]], report)
    pictures = []
    for panel in PANELS:
        points = depth_points(report, panel, axis)
        if len(points) >= 2:
            pictures.append(_panel(panel, points, axis, _other_points(report, panel, axis)))
    return pictures


def measure_pictures(report: dict[str, Any]) -> list[Picture]:
    """Return a panel for each requested measure with numbers at two sites or more."""
    pictures, order = [], [row["site"] for row in report["sites"]]
    lines = [line for line in report.get("measures") or () if line["value"] is not None]
    for method in dict.fromkeys(line["method"] for line in lines):
        of_method = [line for line in lines if line["method"] == method and line["site"] in order]
        if len(of_method) < 2:
            continue
        axis = Axis.of_layers([line["site"] for line in of_method], report)
        panel = Panel(method, of_method[0]["unit"], False)
        rows = [line | {"n_rows": line["n"]} for line in of_method if line["site"] in axis.names]
        points = [_point(row, row, panel, axis, 0.0, {}) for row in rows]
        least, most = (pick(points, key=lambda p: p["value"]) for pick in (min, max))
        ends = [
            f"{quantity(p['value'], panel.unit)} at {axis.say(p['site'])}" for p in (least, most)
        ]
        pictures.append(_drawn(panel, f"{method}: {ends[0]} to {ends[1]}", points, axis))
    return pictures


def _drawn(panel: Panel, message: str, points: Rows, axis: Axis) -> Picture:
    def draw(width: int) -> Chart:
        return _chart(panel, message, points, axis, [])

    return Picture(f"measure-{panel.name}", message, draw)


def depth_numbers(report: dict[str, Any]) -> Numbers:
    """Return every statistic of every drawn site."""
    kept = set(Axis.of_layers([row["site"] for row in report["sites"]], report).sites)
    names = list(dict.fromkeys(name for row in report["sites"] for name in row["values"]))
    columns = ["site", "module", "reducer", "dim", "rows", "nonfinite"]
    for name in names:
        columns += [name, f"{name} se"]
    rows = []
    for row in report["sites"]:
        if row["site"] in kept:
            cells = [row[k] for k in ("site", "module", "reducer", "dim", "n_rows", "n_nonfinite")]
            for name in names:
                value = row["values"].get(name, {})
                cells += [value.get("value"), value.get("se")]
            rows.append(tuple(cells))
    return Numbers(tuple(columns), tuple(rows), "sites")


def depth_points(report: dict[str, Any], panel: Panel, axis: Axis) -> Rows:
    """Return a point for each site with the statistic; on a log axis zero is at the bottom."""
    marks = _marks(report["findings"], panel.name)
    present = [
        (row, row["values"][panel.name])
        for row in report["sites"]
        if row["site"] in axis.names and row["values"].get(panel.name, {}).get("value") is not None
    ]
    positive = [figure["value"] for _, figure in present if figure["value"] > 0]
    floor = min(positive, default=1.0) / 3
    return [_point(row, figure, panel, axis, floor, marks) for row, figure in present]


def _point(
    row: dict[str, Any],
    figure: dict[str, Any],
    panel: Panel,
    axis: Axis,
    floor: Real,
    marks: dict[str, tuple[str, str]],
) -> dict[str, Any]:
    site, value, se = row["site"], figure["value"], figure.get("se")
    low, high = value - _Z * (se or 0.0), value + _Z * (se or 0.0)
    level, code = marks.get(site, (None, ""))
    ends = f"{quantity(low, panel.unit)} to {quantity(high, panel.unit)}" if se else ""
    text = tip(site, quantity(value, panel.unit), ends, plural(row["n_rows"], "row"), code)
    drawn = [max(v, floor) if panel.log else v for v in (value, low, high)]
    point = {"s": axis.names[site], "site": site, "value": value, "tip": text, "level": level}
    return point | dict(zip(("v", "lo", "hi"), drawn, strict=True))


def _marks(findings: Rows, panel: str) -> dict[str, tuple[str, str]]:
    codes = {code for code, cls in rule_classes().items() if cls.panel == panel}
    marks_of: dict[str, tuple[str, str]] = {}
    for finding in reversed(findings):
        if finding["code"] in codes and not finding["ignored"]:
            marks_of |= dict.fromkeys(finding["sites"], (finding["level"], finding["code"]))
    return marks_of


def _other_points(report: dict[str, Any], panel: Panel, axis: Axis) -> Rows:
    """Return the points of the second data set, if there is one."""
    versus = report.get("versus") or {}
    return [
        {"s": axis.names[row["site"]], "v": value,
         "tip": tip(sides(report)[1], row["site"], quantity(value, panel.unit))}
        for row in versus.get("profiles") or ()
        if row["site"] in axis.names
        and (value := row["values"].get(panel.name, {}).get("value")) is not None
        and (value > 0 or not panel.log)
    ]  # fmt: skip


def _panel(panel: Panel, points: Rows, axis: Axis, others: Rows) -> Picture:
    message = _message(panel, points, axis)

    def draw(width: int) -> Chart:
        return _chart(panel, message, points, axis, others)

    note = f"Dashed: {share(panel.limit)}, below which a change counts as almost nothing."
    return Picture(f"depth-{panel.name}", message, draw, note=note if panel.limit else "")


def panel_axis(panel: Panel, points: Rows) -> ChartAxis:
    """Return the vertical axis for all points of a panel."""
    percent = panel.unit == "share"
    if panel.log:
        return ChartAxis("v", title="", log=True, share=percent)
    empty = max(p["hi"] for p in points) <= 0
    low, high = (0.0, 1.0) if empty else (None, None)
    return ChartAxis("v", title="", share=percent, zero=True, low=low, high=high)


def _chart(panel: Panel, message: str, points: Rows, axis: Axis, others: Rows) -> Chart:
    """Return one line with its band, limit and markers of findings."""
    x, y = axis.across(), panel_axis(panel, points)
    levels = [{"value": panel.limit, "tip": f"limit · {share(panel.limit)}"}] if panel.limit else []
    chart = curves(message, points, x, y, bands=[("lo", "hi")], levels=levels)
    if others:
        look: dict[str, Any] = {"color": "var(--c2)", "strokeDash": [4, 3]}
        chart = overlaid(chart, curves(message, others, x, y, dots=False, **look))
        dots: dict[str, Any] = {"color": "var(--c2)", "shape": "square"}
        chart = overlaid(chart, marks(message, others, x, y, **dots))
    for level, shape in MARKS.items():
        hit = [point for point in points if point["level"] == level]
        if hit:
            look = {"shape": shape, "size": 140, "color": f"var(--{level})"}
            chart = overlaid(chart, marks(message, hit, x, y, **look))
    return chart | {"height": 132}


def _message(panel: Panel, points: Rows, axis: Axis) -> str:
    def at(point: dict[str, Any]) -> str:
        return f"{quantity(point['value'], panel.unit)} at {axis.say(point['site'])}"

    low, high = (pick(points, key=lambda p: p["value"]) for pick in (min, max))
    if panel.name == "median_norm":
        head = f"Norm of the median row: {at(points[0])}, {at(points[-1])}"
        ratio = number(high["value"] / low["value"]) if low["value"] > 0 else ""
        return f"{head}; largest over smallest {ratio}" if ratio else head
    if panel.name == "spread":
        return (
            f"Standard deviation between rows: {at(points[0])}, {at(points[-1])}; smallest "
            f"{at(low)}"
        )
    if panel.name == "participation_ratio":
        return f"Directions in use (participation ratio): fewest {at(low)}, most {at(high)}"
    if panel.name == "update_per_spread":
        return _update_message(panel, points, at(low))
    return f"Dead or constant units: at most {at(high)}" if high["value"] > 0 else "No dead unit"


def _update_message(panel: Panel, points: Rows, least: str) -> str:
    small = sum(point["value"] < (panel.limit or 0.0) for point in points)
    if not small:
        text = (
            "Every site differs from the site before; the smallest difference, in standard "
            "deviations, "
        )
        return f"{text}{least}"
    what = f"{plural(small, 'site')} of {len(points)} {'differs' if small == 1 else 'differ'}"
    limit = f"by less than {share(panel.limit)} of its standard deviation"
    return f"{what} from the site before {limit}; the smallest difference is {least}"
