"""The document of measures over the steps of a training run."""

from collections import Counter
from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, curves, marks, overlaid
from sonde.core.result import FLAGS
from sonde.core.wording import plural
from sonde.report._fit import Rows, tip
from sonde.report._format import number, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.charts import chart_picture
from sonde.report.document import Document, Figure, Part, Section, Table, figures

MOST_LINES: Final = 8
VECTOR: Final = "A point is the median, its bar the 10th to the 90th percentile"
ALIKE: Final = 0.9


def document(found: dict[str, Any]) -> Document:
    """Return a track as a document: measures over steps, and similarities of steps.

    Parameters
    ----------
    found : dict
        JSON of a track, ``sonde-track/1``.
    """
    facts = [
        ("recorded in", shown(found["folder"], 200)),
        ("steps", ", ".join(f"{step:,}" for step in found["steps"][:24])),
    ]
    methods = dict.fromkeys(c["method"] for c in found["curves"])
    sections: list[Section | None] = [_measure(found, m, i) for i, m in enumerate(methods)]
    pictures = [chart_picture(c, f"chart-{i}") for i, c in enumerate(found.get("charts", ()))]
    compared = [*figures(*pictures, where="page"), *_across(found["across_steps"])]
    sections.append(Section("charts", "Over the steps", compared))
    return Document(
        "track", "Over the training run", _verdict(found), facts, sections,
        subject=shown(found["folder"], 100),
    )  # fmt: skip


def _verdict(found: dict[str, Any]) -> str:
    """Return a sentence on the track's length and the curve with the largest change."""
    steps, curves = found["steps"], found["curves"]
    first, last = steps[0], steps[-1]
    numbers = [c for c in curves if "low" not in c]
    n_sites = len({c["site"] for c in numbers or curves})
    text = f"{plural(len(steps), 'step')}, {first:,} to {last:,}, at {plural(n_sites, 'site')}."
    changed = [(abs(_change(c)), c) for c in numbers if _ends(c) is not None]
    if len(steps) < 2 or not changed:
        return text
    most = max(changed, key=lambda pair: pair[0])[1]
    low, high = _ends(most) or (0.0, 0.0)
    return (
        f"{text} {most['method']} at {shown(most['site'], 60)} changed most relative to its "
        f"size: {number(low)} to {number(high)}."
    )


def _measure(found: dict[str, Any], method: str, i: int) -> Section:
    """Return the curves of a measure; a terminal prints their ends and extremes."""
    own = [c for c in found["curves"] if c["method"] == method]
    rows = tuple((c["site"], *_ends_and_extremes(c, found["steps"])) for c in own)
    columns = ("site", "first", "last", "least", "largest", "at step")
    brief = Table(Numbers(columns, rows, f"ends-{i}"), most=40, where="terminal")
    return Section(f"method-{i}", method, [Figure(_curves(found, method, f"curves-{i}")), brief])


def _ends_and_extremes(curve: dict[str, Any], steps: list[int]) -> tuple[Any, ...]:
    present = [(v, s) for v, s in zip(curve["values"], steps, strict=True) if v is not None]
    if not present:
        return (None,) * 5
    largest = max(present)
    return present[0][0], present[-1][0], min(present)[0], *largest


def _across(sites: list[dict[str, Any]]) -> list[Part]:
    """Return the similarity of each step's rows to those of the last step, by site."""
    if not sites:
        return []
    rows = tuple(
        (
            one["site"],
            one["to_last"][0],
            _settled(one["steps"], one["to_last"]),
            None if one["explained"] is None else one["explained"][0],
            None if one["explained"] is None else one["lateness"],
        )
        for one in sites
    )
    columns = ("site", "first CKA", f"{ALIKE:g} from", "read first", "lateness")
    meanings = {
        "first CKA": "CKA of the first step's rows with the last's",
        f"{ALIKE:g} from": "first step from which it stays above",
        "read first": "fraction of the last step's features that the first step's states predict",
        "lateness": "mean fraction of these features that earlier steps lack",
    }
    title = (
        f"Each step compared with step {sites[0]['steps'][-1]:,}, by {plural(sites[0]['n'], 'row')}"
    )
    return [Table(Numbers(columns, rows, "across"), title, folded=False, meanings=meanings)]


def _settled(steps: list[int], alike: list[float | None]) -> int:
    """Return the first step from which all steps are at least ``ALIKE`` similar to the last."""
    late = [i for i, value in enumerate(alike) if value is None or value < ALIKE]
    return steps[min(late[-1] + 1, len(steps) - 1)] if late else steps[0]


def _ends(curve: dict[str, Any]) -> tuple[float, float] | None:
    present = [v for v in curve["values"] if v is not None]
    return (present[0], present[-1]) if len(present) > 1 else None


def _change(curve: dict[str, Any]) -> float:
    """Return the relative change from first to last."""
    first, last = _ends(curve) or (0.0, 0.0)
    size = max(abs(first), abs(last))
    return (last - first) / size if size else 0.0


def _flags_said(found: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each flag of these results at some step."""
    flags = [flag for c in found for flag in c.get("flags", ())]
    return [
        f"Flag {flag} at {plural(n, 'site')}: {FLAGS[flag]}." for flag, n in Counter(flags).items()
    ]


def _curves(found: dict[str, Any], method: str, key: str) -> Picture:
    """Return the curves of at most ``MOST_LINES`` sites; the table lists all sites."""
    own = [c for c in found["curves"] if c["method"] == method]
    axis = Axis.of([c["site"] for c in own], MOST_LINES)
    rows = [row for c in own if c["site"] in axis.names for row in _points(c, found["steps"], axis)]
    columns = ("site", *(f"{step}" for step in found["steps"]))
    table = tuple((c["site"], *c["values"]) for c in own)

    def draw(width: int) -> Chart:
        x, y = ChartAxis("x", title="step"), ChartAxis("v", title="")
        kept = [row for row in rows if "lo" in row]
        chart = curves(message, rows, x, y, by="s")
        if not kept:
            return chart
        bare = [{k: v for k, v in row.items() if k != "tip"} for row in kept]
        ends = marks(message, bare, x, y, by="s", low="lo", high="hi", size=0, aria=False)
        return overlaid(chart, ends)

    message = f"{method} at {plural(len(own), 'site')}, step by step"
    vectors = [c for c in own if "low" in c]
    note = "Bars are two standard errors." if any("lo" in row for row in rows) else ""
    if vectors:
        note = (
            f"{VECTOR} of at most {plural(max(c['entries'] for c in vectors), 'entry', 'entries')}."
        )
    if len(own) > len(axis.sites):
        note += f" Drawn at {len(axis.sites)} of {plural(len(own), 'site')}."
    note = " ".join([note, *_flags_said(own)])
    return Picture(key, message, draw, Numbers(columns, table, f"{key}-table"), note.strip())


def _points(curve: dict[str, Any], steps: list[int], axis: Axis) -> Rows:
    rows: Rows = []
    for i, (step, value) in enumerate(zip(steps, curve["values"], strict=True)):
        if value is None:
            continue
        row = {
            "x": step,
            "v": value,
            "s": axis.names[curve["site"]],
            "tip": tip(curve["site"], f"step {step:,}", number(value)),
        }
        error = curve["errors"][i]
        if "low" in curve:
            row |= {"lo": curve["low"][i], "hi": curve["high"][i]}
        elif error is not None:
            row |= {"lo": value - 2 * error, "hi": value + 2 * error}
        rows.append(row)
    return rows
