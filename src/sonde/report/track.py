"""Measures over the steps of a training, as one page."""

from pathlib import Path
from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, curves, marks, overlaid
from sonde.core.wording import plural
from sonde.report._fit import Rows, tip
from sonde.report._format import number, shown
from sonde.report._markup import ElementIds
from sonde.report._parts import figure
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.charts import chart_picture
from sonde.report.document import Head, Section, document_page, save_document
from sonde.report.track_terminal import flags_said, track_verdict

MOST_LINES: Final = 8
VECTOR: Final = "A point is the median, its bar the 10th to the 90th percentile"


def track_to_html(found: dict[str, Any]) -> str:
    """Return the curves as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a track, ``sonde-track/1``.
    """
    names = ElementIds()
    methods = dict.fromkeys(c["method"] for c in found["curves"])
    parts = [
        Section(f"method-{i}", method, [figure(_curves(found, method, f"curves-{i}"), names)])
        for i, method in enumerate(methods)
    ]
    pictures = [chart_picture(c, f"chart-{i}") for i, c in enumerate(found.get("charts", ()))]
    if pictures:
        parts.append(Section("charts", "Over the steps", [figure(p, names) for p in pictures]))
    head = Head(
        "track",
        "Over the training",
        track_verdict(found),
        [
            ("recorded in", shown(found["folder"], 200)),
            ("steps", ", ".join(f"{step:,}" for step in found["steps"][:24])),
        ],
        subject=shown(found["folder"], 100),
    )
    return document_page(found, head, parts)


def save_track(found: dict[str, Any], path: str | Path) -> Path:
    """Write a track as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, track_to_html, "save_track")


def _curves(found: dict[str, Any], method: str, key: str) -> Picture:
    """Return the curves of a measure, of at most ``MOST_LINES`` sites; all stand in the table."""
    own = [c for c in found["curves"] if c["method"] == method]
    axis = Axis.of([c["site"] for c in own], MOST_LINES)
    rows = [row for c in own if c["site"] in axis.names for row in _points(c, found["steps"], axis)]
    columns = ("site", *(f"{step}" for step in found["steps"]))
    table = tuple((c["site"], *c["values"]) for c in own)

    def draw(width: int) -> Chart:
        x, y = ChartAxis("x", title="step"), ChartAxis("v", title="")
        kept = [row for row in rows if "lo" in row]
        made = curves(message, rows, x, y, by="s")
        if not kept:
            return made
        bare = [{k: v for k, v in row.items() if k != "tip"} for row in kept]
        ends = marks(message, bare, x, y, by="s", low="lo", high="hi", size=0, aria=False)
        return overlaid(made, ends)

    message = f"{method} at {plural(len(own), 'site')}, step by step"
    vectors = [c for c in own if "low" in c]
    note = "Bars are two standard errors." if any("lo" in row for row in rows) else ""
    if vectors:
        note = (
            f"{VECTOR} of at most {plural(max(c['entries'] for c in vectors), 'entry', 'entries')}."
        )
    if len(own) > len(axis.sites):
        note += f" Drawn at {len(axis.sites)} of {len(own)} sites."
    note = " ".join([note, *flags_said(own)])
    return Picture(key, message, draw, Numbers(columns, table, f"{key}-table"), note.strip())


def _points(curve: dict[str, Any], steps: list[int], axis: Axis) -> Rows:
    made: Rows = []
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
        made.append(row)
    return made
