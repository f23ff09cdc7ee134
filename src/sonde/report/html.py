"""The report as one HTML page that needs nothing else: no network, no file, no runtime.

Use it to look at a scan; programs read the JSON that the page carries.
"""

import json
from typing import Any, Final

from sonde.report._format import Real, shown
from sonde.report._markup import ElementIds, Markup, join
from sonde.report._page import contents, page
from sonde.report._parts import drawer, is_absent, section
from sonde.report._section_findings import findings_section, header, verdict_line
from sonde.report._section_pictures import (
    answers_section,
    depth_section,
    labels_section,
    measures_section,
    prediction_section,
    similarity_section,
    units_section,
)
from sonde.report._section_rows import checks_section, rows_section, versus_section
from sonde.report._section_source import limits_section, provenance_section
from sonde.report._section_wrong import wrong_section
from sonde.report._select import drawn
from sonde.report.compare import document as comparison
from sonde.report.document_page import embedded

MAX_BYTES: Final = 5_000_000

MEASURED: Final = "Profiles by depth, similarity of sites, units, labels and rows"
SECTIONS: Final = {
    "findings": "Findings",
    "wrong": "Wrong inputs",
    "versus": "The two data sets",
    "versus_model": "The two models",
    "measured": "What was measured",
    "answers": "Answers",
    "depth": "Depth profile",
    "similarity": "Similarity map",
    "units": "Units",
    "labels": "Labels",
    "prediction": "Prediction by depth",
    "rows": "Rows",
    "measures": "Measures",
    "checks": "All checks",
    "limits": "What this scan cannot see",
    "provenance": "Provenance",
}


def to_html(report: dict[str, Any]) -> str:
    """Return a report as one self-contained page.

    Parameters
    ----------
    report : dict
        JSON of a scan, schema ``sonde-scan/1``.

    Returns
    -------
    str
        Less than 5 MB whatever the model: at most 100 sites are drawn. If the JSON itself is
        larger, the embedded JSON leaves out parts, first similarity and curves of sites that are
        not drawn, and names them in ``limits``.
    """
    names = ElementIds()
    measured = [part for part in _measured(report, names) if part is not None]
    parts = join(
        findings_section(report),
        *filter(None, [wrong_section(report, names), _versus_model(report, names)]),
        *_folded(report, [part for part in measured if not is_absent(part)]),
        *filter(None, [measures_section(report, names)]),
        checks_section(report, names),
        limits_section(report, [part for part in measured if is_absent(part)]),
        provenance_section(report, names),
    )
    kept = {key: said for key, said in SECTIONS.items() if f' id="{key}"' in parts}
    body = join(header(report), contents("toc", kept), parts)
    where = report["provenance"]
    title = f"{shown(where['model']['name'], 80)} on {shown(where['data']['name'], 80)}: sonde scan"
    room = MAX_BYTES - len(body.encode()) - 200_000
    summary = verdict_line(report["verdict"])
    return page(title, summary, body, thinned(report, room), kept)


def _versus_model(report: dict[str, Any], names: ElementIds) -> Markup | None:
    """Return the differences from the other model, or None if no other model was given."""
    found = report.get("versus_model")
    if found is None:
        return None
    made = comparison(found)
    return section(
        "versus_model", SECTIONS["versus_model"], embedded(made, names), lead=made.verdict
    )


def _measured(report: dict[str, Any], names: ElementIds) -> list[Markup | None]:
    """Return the sections of profiles, units, labels and rows."""
    return [
        answers_section(report, names),
        versus_section(report, names),
        depth_section(report, names),
        similarity_section(report, names),
        units_section(report, names),
        labels_section(report, names),
        prediction_section(report, names),
        rows_section(report, names),
    ]


def _folded(report: dict[str, Any], parts: list[Markup]) -> list[Markup]:
    """Return the comparison with OTHER as it is, and the other sections in one drawer."""
    if not parts:
        return []
    if report.get("versus"):
        apart = [part for part in parts if part.startswith('<section id="versus"')]
        rest = [part for part in parts if part not in apart]
        return [*apart, *_folded(report | {"versus": None}, rest)]
    return [section("measured", "What was measured", drawer(MEASURED, *parts, cls="more"))]


_SAID = "The JSON in this page leaves out {}; `sonde scan --json` prints all of it."


def thinned(report: dict[str, Any], room: int) -> dict[str, Any]:
    """Return the report; while it is too large, parts are left out.

    In order: undrawn similarity, curves, units and sites; the map; rows that the model gets right.

    Parameters
    ----------
    report : dict
        Never changed.
    room : int
        Bytes that the JSON may take.
    """
    kept = dict(report)
    for said, step in (
        ("the similarity of sites that are not drawn", _similarity),
        ("curves and units of sites that are not drawn", _curves),
        ("sites that are not drawn", _sites),
        ("the map of rows", _map),
        ("rows that the model gets right", _right),
    ):
        if _bytes(kept) <= room:
            break
        kept = {**step(kept), "limits": [*kept["limits"], _SAID.format(said)]}
    return kept


def _bytes(report: dict[str, Any]) -> int:
    text = json.dumps(report, separators=(",", ":"))
    return len(text) + 5 * (text.count("<") + text.count(">") + text.count("&"))


def _similarity(report: dict[str, Any]) -> dict[str, Any]:
    known = report.get("similarity")
    if not known:
        return report
    names = set(drawn(known["sites"]))
    at = [i for i, site in enumerate(known["sites"]) if site in names]
    cut = {"sites": [known["sites"][i] for i in at]}
    for key in ("cka", "se", "null"):
        matrix = known.get(key)
        whole = isinstance(matrix, list)
        cut[key] = [[_short(matrix[i][j]) for j in at] for i in at] if whole else matrix
    return {**report, "similarity": {**known, **cut}}


def _short(value: Real | None) -> Real | None:
    return None if value is None else float(f"{value:.4g}")


def _kept_sites(report: dict[str, Any]) -> set[str]:
    return set(drawn([row["site"] for row in report["sites"]]))


def _curves(report: dict[str, Any]) -> dict[str, Any]:
    names = _kept_sites(report)
    sites = [row if row["site"] in names else {**row, "curves": {}} for row in report["sites"]]
    units = [row for row in report.get("units") or [] if row["site"] in names]
    return {**report, "sites": sites, "units": units}


def _sites(report: dict[str, Any]) -> dict[str, Any]:
    names = _kept_sites(report)
    return {**report, "sites": [row for row in report["sites"] if row["site"] in names]}


def _map(report: dict[str, Any]) -> dict[str, Any]:
    rows = report.get("rows")
    return {**report, "rows": {**rows, "map": None}} if rows else report


def _right(report: dict[str, Any]) -> dict[str, Any]:
    rows = report.get("rows") or {}
    wrong = [row for row in rows.get("answers", ()) if row["right"] is False]
    return {**report, "rows": {**rows, "answers": wrong}} if rows else report
