"""Scores of new rows as a page: the most unusual examples first, inputs only on request."""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sonde.core.wording import is_content_hash
from sonde.files.durable import atomic_write
from sonde.files.places import to_path
from sonde.report._exhibits import exhibit
from sonde.report._format import number, plural, shown
from sonde.report._heat import ColourScale
from sonde.report._markup import ElementIds, Markup, code, el
from sonde.report._parts import badge, definitions
from sonde.report._picture import Numbers
from sonde.report._pictures_scores import histogram_picture, named
from sonde.report.document import Document, Drawing, Part, Prose, Section, Table, figures
from sonde.report.document_page import document_page
from sonde.report.files import sealed_page
from sonde.run.instruments.entries import place_of
from sonde.run.scoring.curves import histogram, threshold_of
from sonde.run.scoring.lacking import lacking
from sonde.run.scoring.score import spot
from sonde.run.scoring.tables import keys_of, part_of, scores_of
from sonde.run.scoring.unusual import most_unusual

SCHEMA: Final = "sonde-scores/1"
MOST_DRAWN: Final = 4
MOST_ROWS: Final = 300
SHOWN: Final = 8

_SUMMARY: Final = ("detector", "site", "rows", "median", "highest", "alarms", "infinite")
_MEANINGS: Final = {
    "median": "score of the median row; each detector and site has its own scale",
    "alarms": "fraction of rows with p at most {alpha:g}",
    "infinite": "scores of rows that are not finite, or too large",
}


def scores_to_html(
    scored: pa.Table,
    exhibits: Any = None,
    *,
    alpha: float = 0.05,
    title: str = "Scores",
    examples: int = SHOWN,
) -> str:
    """Return a table of scores as a self-contained page.

    Parameters
    ----------
    scored : pyarrow.Table
        As ``sonde.score`` returns it.
    exhibits : sonde.run.scoring.exhibit.Exhibits, optional
        Shows the parts of the most unusual examples with their scores; their inputs only if it
        was made with ``inputs=True``. Without it, ids and scores stand alone.
    alpha : float, default=0.05
        Alarm rate: a row raises an alarm if its p-value is at most this.
    title : str
    examples : int, default=8
        How many are shown for each detector.
    """
    names = ElementIds()
    lines = most_unusual(scored, examples)
    summary = [_summary(scored, key, alpha) for key in keys_of(scored)]
    placed = tuple((row[0], place_of(row[0], row[1]), *row[2:]) for row in summary)
    meanings = {name: text.format(alpha=alpha) for name, text in _MEANINGS.items()}
    numbers = Numbers(_SUMMARY, placed, "detectors")
    detectors = Table(numbers, kinds={"alarms": "share"}, meanings=meanings)
    carried = {
        "schema": SCHEMA,
        "alpha": alpha,
        "shows_inputs": bool(exhibits is not None and exhibits.inputs),
        "summary": [dict(zip(_SUMMARY, row, strict=True)) for row in summary],
        "unusual": {
            name: [_plain(line) for line in of_instrument] for name, of_instrument in lines.items()
        },
    }
    first = next((line for of_instrument in lines.values() for line in of_instrument), None)
    seen = None if exhibits is None or first is None else exhibits.of(first)
    verdict = "No rows." if first is None else f"Most anomalous: {_name(first, seen)}"
    document = Document(
        "score",
        shown(title, 200),
        verdict,
        _facts(scored, exhibits, alpha),
        [
            _unusual(lines, exhibits, alpha, names),
            _drawn(scored, alpha),
            Section("summary", "Detectors and sites", [detectors]),
            _unusual_rows(scored),
        ],
    )
    return document_page(document, carried, names)


def save_scores(scored: pa.Table, path: str | Path, exhibits: Any = None, **options: Any) -> Path:
    """Write the page of a table of scores."""
    sealed = sealed_page(scores_to_html(scored, exhibits, **options))
    atomic_write(path, sealed.encode())
    return to_path(path)


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in line.items()}  # fmt: skip


def _facts(scored: pa.Table, exhibits: Any, alpha: float) -> list[tuple[str, str | None]]:
    ids = len(scored["id"].unique())
    p = [value for value in scored["p"].to_pylist() if value is not None]
    alarms = f"{sum(value <= alpha for value in p):,} of {len(p):,} lines" if p else None
    inputs = exhibits is not None and exhibits.inputs
    return [
        ("examples", f"{ids:,}"),
        ("lines", f"{scored.num_rows:,}"),
        (f"alarms (p at most {alpha:g})", alarms or "none known: not calibrated"),
        ("too few", _too_few(scored, exhibits, alpha) if p else None),
        ("inputs", "shown" if inputs else "not shown (--show-inputs shows them)"),
    ]


def _too_few(scored: pa.Table, exhibits: Any, alpha: float) -> str | None:
    """Return the number of calibration rows if they are too few for any alarm, else None."""
    if exhibits is None:
        return None
    few = [reason for key in keys_of(scored) if (reason := lacking(exhibits.fitted, key, alpha))]
    return (
        "{} calibration rows, but an alarm needs {}: calibrate on more rows".format(*min(few))
        if few
        else None
    )


def _unusual(
    lines: dict[str, list[dict[str, Any]]], exhibits: Any, alpha: float, names: ElementIds
) -> Section:
    parts: list[Part] = []
    for instrument, of_instrument in lines.items():
        shown_exhibits = [None if exhibits is None else exhibits.of(line) for line in of_instrument]
        scales = _scales(of_instrument, shown_exhibits)
        if len(lines) > 1:
            parts.append(Prose(shown(instrument, 60), "heading"))
        parts += [
            Drawing(
                _card(rank, line, _spot(line, exhibits), seen, scales[line["site"]], alpha, names)
            )
            for rank, (line, seen) in enumerate(zip(of_instrument, shown_exhibits, strict=True), 1)
        ]
    lead = (
        "Ordered by p-value, then by how far the score lies above the others of its site. "
        "Colour and marks compare the parts of the examples on this page. An alarm mark "
        f"means p of at most {alpha:g}."
    )
    if not parts:
        parts.append(Prose("No rows were scored.", "empty"))
    return Section("unusual", "Most anomalous examples", parts, lead)


def _spot(line: dict[str, Any], exhibits: Any) -> str:
    """Return a line's position within its example, or "" for a whole example."""
    if exhibits is not None:
        return spot(line, exhibits.fitted)
    return f"position {line['position']:,}" if line["position"] else ""


def _scales(lines: list[dict[str, Any]], made: list[Any]) -> dict[str, ColourScale]:
    """Return each site's colour scale over all examples shown."""
    scores: dict[str, list[float]] = {line["site"]: [] for line in lines}
    for line, seen in zip(lines, made, strict=True):
        scores[line["site"]] += list(seen.score) if seen is not None else []
    return {site: ColourScale.of(values) for site, values in scores.items()}


def _card(
    rank: int,
    line: dict[str, Any],
    spot: str,
    found: Any,
    scale: ColourScale,
    alpha: float,
    names: ElementIds,
) -> Markup:
    p = line["p"]
    score = number(line["score"]) if math.isfinite(line["score"]) else "infinite"
    alarm = badge("warning", "alarm") if p is not None and p <= alpha else None
    name = _name(line, found)
    top = el("div", el("span", f"{rank}.", cls="code"), code(name), alarm, cls="top")
    units, row = line.get("units"), line.get("row")
    where = [named(line["instrument"], line["site"]), spot]
    place = None if found is None or found.place in (name, f"row {row}") else found.place
    facts = [
        ("id", None if name == line["id"] else line["id"]),
        ("place", None if place is None else shown(place, 200)),
        ("row", None if row is None else f"{row:,}, counted from 0 in the order of the data"),
        ("score", score + ("" if p is None else f", p {number(p)}")),
        ("where", ", ".join(filter(None, where))),
        ("layers", ", ".join(shown(s, 60) for s in line.get("layers") or ()) or None),
        ("units", ", ".join(map(str, units)) if units else None),
    ]
    body = None if found is None else exhibit(found, scale, alpha, names)
    heading = el("h4", f"Example {rank}", cls="offscreen")
    return el("article", heading, top, definitions(facts), body, cls="card example")


def _name(line: dict[str, Any], found: Any) -> str:
    """Return the id of an example; if the id is a hash of its content, its place or row."""
    own, row = line["id"], line.get("row")
    if not is_content_hash(own):
        return shown(own, 80)
    if found is not None and found.place:
        return shown(found.place, 80)
    return own if row is None else f"row {row:,}"


def _drawn(scored: pa.Table, alpha: float) -> Section:
    parts: list[Part] = []
    keys = keys_of(scored)
    for key in keys[-MOST_DRAWN:]:
        part = part_of(scored, key)
        bins = histogram(scores_of(part)) | {"threshold": threshold_of([part], alpha)}
        picture = histogram_picture(bins, named(*key), ("scored",), alpha)
        words = f"{named(*key)}: all scores are infinite."
        parts += figures(picture) or [Prose(words, "empty")]
    few = f"Drawn: the last {MOST_DRAWN} of {len(keys)}." if len(keys) > MOST_DRAWN else ""
    return Section("scores", "Scores", parts, few)


def _summary(scored: pa.Table, key: tuple[str, str], alpha: float) -> tuple[Any, ...]:
    part = part_of(scored, key)
    scores = scores_of(part)
    finite = scores[np.isfinite(scores)]
    middle = float(np.quantile(scores, 0.5, method="inverted_cdf"))
    p = part["p"].to_pylist()
    present = [value for value in p if value is not None]
    alarms = sum(v <= alpha for v in present) / len(present) if present else None
    return (
        *key,
        len(scores),
        middle if math.isfinite(middle) else None,
        float(finite.max()) if len(finite) else None,
        alarms,
        len(scores) - len(finite),
    )


def _unusual_rows(scored: pa.Table) -> Section:
    """Return the lines with the smallest p-values, then the highest scores."""
    p = np.array([math.inf if v is None else v for v in scored["p"].to_pylist()])
    order = np.lexsort((-scores_of(scored), p))[:MOST_ROWS]
    further = ("row",) if scored["row"].null_count < scored.num_rows else ()
    further += ("position",) if any(scored["position"].to_pylist()) else ()
    columns = ("id", *further, "instrument", "site", "score", "p")
    rows = tuple(
        tuple(_value(row, name) for name in columns) for row in scored.take(order).to_pylist()
    )
    lead = f"{plural(len(rows), 'line')} of {scored.num_rows:,}, smallest p-values first."
    table = Table(Numbers(columns, rows, "rows"), "Lines", folded=True)
    return Section("rows", "Rows", [table], lead)


def _value(row: dict[str, Any], name: str) -> Any:
    """Return a table cell: infinite scores as a word, with the detector's position."""
    if name == "score" and (row[name] is None or not math.isfinite(row[name])):
        return "infinite"
    return place_of(row["instrument"], row["site"]) if name == "site" else row[name]
