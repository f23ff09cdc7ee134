"""Measures over the steps of a training, as one page."""

from pathlib import Path
from typing import Any, Final

import altair as alt

from sonde.core.wording import plural
from sonde.report._axes import NARROW, OKABE_ITO, Rows, layer, sized, tip, y_axis
from sonde.report._format import number, shown
from sonde.report._markup import Names
from sonde.report._parts import figure
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.document import Head, Section, document_page, save_document
from sonde.report.track_terminal import track_verdict

MOST_LINES: Final = 8


def track_to_html(found: dict[str, Any]) -> str:
    """Return the curves as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a track, ``sonde-track/1``.
    """
    names = Names()
    methods = dict.fromkeys(c["method"] for c in found["curves"])
    parts = [
        Section(f"method-{i}", method, [figure(_curves(found, method, f"curves-{i}"), names)])
        for i, method in enumerate(methods)
    ]
    left = ", ".join(found["left_out"])
    head = Head(
        "track",
        "Over the training",
        track_verdict(found),
        [
            ("recorded in", shown(found["folder"], 200)),
            ("steps", ", ".join(f"{step:,}" for step in found["steps"][:24])),
            ("without a curve", f"{left} (vectors)" if left else None),
        ],
        subject=shown(found["folder"], 100),
    )
    return document_page(found, head, parts)


def save_track(found: dict[str, Any], path: str | Path) -> Path:
    """Write a track as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, track_to_html, "save_track")


def _curves(found: dict[str, Any], method: str, key: str) -> Picture:
    """Return the curves of a measure, of at most ``MOST_LINES`` sites; all stand in the table."""
    curves = [c for c in found["curves"] if c["method"] == method]
    axis = Axis.of([c["site"] for c in curves], MOST_LINES)
    rows = [
        row for c in curves if c["site"] in axis.names for row in _points(c, found["steps"], axis)
    ]
    columns = ("site", *(f"{step}" for step in found["steps"]))
    table = tuple((c["site"], *c["values"]) for c in curves)

    def draw(width: int) -> Any:
        scale = alt.Scale(domain=axis.labels, range=list(OKABE_ITO[: len(axis.labels)]))
        legend = alt.Legend(
            orient="bottom", title=axis.title or None, columns=2 if width <= NARROW else 4
        )
        color = alt.Color("s:N", sort=axis.labels, scale=scale, legend=legend)
        x = alt.X("x:Q", axis=alt.Axis(title="step", tickCount=5, format=",d"))
        y = alt.Y("v:Q", scale=alt.Scale(zero=False), axis=y_axis())
        kept = [row for row in rows if "lo" in row]
        bars = layer(kept).mark_rule(opacity=0.4, aria=False)
        errors = bars.encode(x=x, y=alt.Y("lo:Q", axis=y_axis()), y2="hi:Q", color=color)
        path = layer(rows).mark_line(strokeWidth=2, aria=False).encode(x=x, y=y, color=color)
        points = layer(rows).mark_point(filled=True, size=36, opacity=1)
        marks = points.encode(x=x, y=y, color=color, description=alt.Description("t:N"))
        return sized([errors, path, marks] if kept else [path, marks], width, 240)

    message = f"{method} at {plural(len(curves), 'site')}, step by step"
    note = "Bars are two standard errors." if any("lo" in row for row in rows) else ""
    if len(curves) > len(axis.sites):
        note += f" Drawn at {len(axis.sites)} of {len(curves)} sites."
    return Picture(key, message, draw, Numbers(columns, table, f"{key}-table"), note.strip())


def _points(curve: dict[str, Any], steps: list[int], axis: Axis) -> Rows:
    made: Rows = []
    for step, value, error in zip(steps, curve["values"], curve["errors"], strict=True):
        if value is None:
            continue
        row = {
            "x": step,
            "v": value,
            "s": axis.names[curve["site"]],
            "t": tip(curve["site"], f"step {step:,}", number(value)),
        }
        made.append(
            row if error is None else row | {"lo": value - 2 * error, "hi": value + 2 * error}
        )
    return made
