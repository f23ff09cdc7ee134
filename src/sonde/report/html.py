"""The report as a self-contained HTML page: no network, no other file, no runtime.

Use it to look at a scan; programs read the JSON that the page carries.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from sonde.core.wording import gib
from sonde.findings.answered import SHOWN, wrong_pairs
from sonde.report._answers_words import answer_words, place_of
from sonde.report._format import Real, number, plural, seconds, share, shown, words
from sonde.report._markup import ElementIds, Markup, code, el, join
from sonde.report._page import contents, page
from sonde.report._parts import PICTURE, command, definitions, drawer, is_absent, section, tabled
from sonde.report._picture import Numbers
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
from sonde.report._select import drawn
from sonde.report.compare import document as comparison
from sonde.report.document_page import embedded

OPEN = 3
"""Number of pairs of classes that are shown; further pairs are folded."""


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
    "limits": "What this scan cannot detect",
    "provenance": "Provenance",
}


def to_html(report: dict[str, Any]) -> str:
    """Return a report as a self-contained page.

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
    kept = {key: heading for key, heading in SECTIONS.items() if f' id="{key}"' in parts}
    body = join(header(report), contents("toc", kept), parts)
    where = report["provenance"]
    title = f"{shown(where['model']['name'], 80)} on {shown(where['data']['name'], 80)}: sonde scan"
    room = MAX_BYTES - len(body.encode()) - 200_000
    summary = verdict_line(report["verdict"])
    return page(title, summary, body, thinned(report, room), kept)


def _versus_model(report: dict[str, Any], names: ElementIds) -> Markup | None:
    """Return the section on differences from another model, or None without another model."""
    comparison_of = report.get("versus_model")
    if comparison_of is None:
        return None
    document = comparison(comparison_of)
    return section(
        "versus_model", SECTIONS["versus_model"], embedded(document, names), lead=document.verdict
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
    """Return the comparison with OTHER, and the other sections in one collapsed part."""
    if not parts:
        return []
    if report.get("versus"):
        apart = [part for part in parts if part.startswith('<section id="versus"')]
        rest = [part for part in parts if part not in apart]
        return [*apart, *_folded(report | {"versus": None}, rest)]
    return [section("measured", "What was measured", drawer(MEASURED, *parts, cls="more"))]


_SAID = "The JSON in this page leaves out {}; `sonde scan --json` prints all of it."


def thinned(report: dict[str, Any], room: int) -> dict[str, Any]:
    """Return the report, with parts left out while it is too large.

    In order: undrawn similarity, curves, units and sites; the map; rows that the model gets right.

    Parameters
    ----------
    report : dict
        Never changed.
    room : int
        Bytes that the JSON may take.
    """
    kept = dict(report)
    for what, step in (
        ("the similarity of sites that are not drawn", _similarity),
        ("curves and units of sites that are not drawn", _curves),
        ("sites that are not drawn", _sites),
        ("the map of rows", _map),
        ("rows that the model answers correctly", _right),
    ):
        if _bytes(kept) <= room:
            break
        kept = {**step(kept), "limits": [*kept["limits"], _SAID.format(what)]}
    return kept


def _bytes(report: dict[str, Any]) -> int:
    text = json.dumps(report, separators=(",", ":"))
    return len(text) + 5 * (text.count("<") + text.count(">") + text.count("&"))


def _similarity(report: dict[str, Any]) -> dict[str, Any]:
    similarity = report.get("similarity")
    if not similarity:
        return report
    names = set(drawn(similarity["sites"]))
    at = [i for i, site in enumerate(similarity["sites"]) if site in names]
    cut = {"sites": [similarity["sites"][i] for i in at]}
    for key in ("cka", "se", "null"):
        matrix = similarity.get(key)
        whole = isinstance(matrix, list)
        cut[key] = [[_short(matrix[i][j]) for j in at] for i in at] if whole else matrix
    return {**report, "similarity": {**similarity, **cut}}


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


def wrong_section(report: dict[str, Any], names: ElementIds) -> Markup | None:
    """Return the wrong inputs of each (label, answer) pair, worst first, or None."""
    rows = (report.get("rows") or {}).get("answers") or []
    pairs = wrong_pairs(rows)
    if not pairs:
        return None
    is_judged = any(row["right"] is not None for row in rows)
    drawn = [_pair(some, is_judged) for some in pairs]
    parts, others = [el("div", *drawn[:OPEN], cls="pairs")], drawn[OPEN:]
    if others:
        summary = el("summary", f"{plural(len(others), 'more pair')} of classes")
        parts.append(el("details", summary, el("div", *others, cls="pairs"), cls="how"))
    listed = [row for row in rows if row["right"] is False] if is_judged else pairs[0]
    table = tuple(
        (
            place_of(row),
            row["id"],
            _cell(row["truth"]),
            _cell(row["answer"]),
            row["confidence"],
            row["loss"],
            ", ".join(row["findings"]) or None,
        )
        for row in listed[:500]
    )
    heads = ("where", "id", "truth", "answer", "sure", "loss", "named by")
    parts.append(tabled(Numbers(heads, table, "wrong inputs"), names, "Wrong inputs"))
    n_judged = sum(row["right"] is not None for row in rows)
    lead = f"{len(listed):,} of {plural(n_judged, 'row')} are wrong. " if is_judged else ""
    lead += "The worst rows come first."
    if not report["shows_inputs"]:
        lead += " Inputs are left out; a page written without --no-inputs and --hash-ids has them."
    return section("wrong", "Wrong inputs" if is_judged else "Worst inputs", *parts, lead=lead)


def _pair(rows: Sequence[dict[str, Any]], known: bool) -> Markup:
    truth, answer = (shown(rows[0][side] or "", 60) for side in ("truth", "answer"))
    title = f"{truth} called {answer}: {plural(len(rows), 'row')}"
    cards = [_card(row, known) for row in rows[:SHOWN]]
    return el("div", el("h3", title) if known else None, el("div", *cards, cls="gallery"))


def _card(row: dict[str, Any], known: bool) -> Markup:
    sure = "" if row["confidence"] is None else f"{share(row['confidence'])} sure"
    title = sure if known else answer_words(row)
    codes = ", ".join(row["findings"])
    return el(
        "figure",
        _input(row.get("input")),
        el("figcaption", el("b", title), el("span", place_of(row)), el("span", codes)),
    )


def _input(given: str | None) -> Markup | None:
    if given is None:
        return None
    if PICTURE.fullmatch(given):
        return el("img", src=Markup(given), alt="the input", cls="thumb")
    return el("div", *(el("p", line) for line in given.split("\n")), cls="words")


def _cell(value: Any) -> Any:
    return value if isinstance(value, str) or value is None else number(value)


def limits_section(report: dict[str, Any], absent: Sequence[Markup] = ()) -> Markup:
    """Return the limits of this scan: unmeasured things and withheld checks."""
    items = [*absent, *(el("li", text) for text in report["limits"])]
    for state in ("withheld", "failed"):
        for check in report["checks"]:
            if check["state"] == state:
                words = f" {check['title']}: {state}; {check['reason'] or 'no reason given'}."
                items.append(el("li", el("span", check["code"], cls="code"), words))
    folded = drawer(plural(len(items), "limit"), el("ul", *items, cls="limits"), cls="more")
    return section("limits", "What this scan cannot detect", folded)


def provenance_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return model, data, run, versions and the exact command."""
    where = report["provenance"]
    parts = [el("h3", "Model"), definitions(_pairs(where["model"]))]
    parts += [el("h3", "Data"), definitions(_pairs(where["data"]))]
    if where["other"]:
        parts += [el("h3", "Other data"), definitions(_pairs(where["other"]))]
    parts += [el("h3", "Run"), definitions(_run(where))]
    if report.get("left_out"):
        rows = tuple((entry["site"], entry["reason"]) for entry in report["left_out"])
        parts += [
            el("h3", "Sites that were left out"),
            tabled(Numbers(("site", "reason"), rows, "sites"), names, "Sites that were left out"),
        ]
    if where.get("thresholds"):
        moved = [(key, number(value)) for key, value in where["thresholds"].items()]
        parts += [el("h3", "Thresholds that were changed"), definitions(moved)]
    if where.get("instruments"):
        rows = tuple(
            tuple(row[k] for k in ("name", "sites", "rows", "n_rows"))
            for row in where["instruments"]
        )
        columns = ("statistic", "sites", "which rows", "rows")
        parts += [
            el("h3", "What was computed"),
            tabled(Numbers(columns, rows, "statistics"), names, "Statistics"),
        ]
    parts += [el("h3", "Versions"), definitions([(k, v) for k, v in where["versions"].items()])]
    parts += [el("h3", "Command"), command(where["command"])]
    button = el("button", "Copy the JSON of this report", type="button", data_json="sonde")
    closing = el("p", button, " Schema ", code(report["schema"]), ".", cls="closing")
    folded = drawer("Model, data, run, versions and command", *parts, cls="more")
    return section("provenance", "Provenance", folded, closing)


def _run(where: dict[str, Any]) -> list[tuple[str, str | None]]:
    facts = {
        "wall time": None if where.get("wall_seconds") is None else seconds(where["wall_seconds"]),
        "peak memory": None
        if where.get("peak_memory_bytes") is None
        else gib(where["peak_memory_bytes"]),
    }
    keys = (
        "sites",
        "reducer",
        "special_tokens",
        "seed",
        "unit_size",
        "workers",
        "threads",
        "started",
        "state_id",
    )
    plain = [(words(key), _shown(where[key])) for key in keys if where.get(key) is not None]
    return [*plain, *facts.items()]


def _pairs(values: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [
        (words(key.removeprefix("n_")), _shown(value))
        for key, value in values.items()
        if value is not None
    ]


def _shown(value: Any) -> Markup | str:
    if isinstance(value, str):
        return join(shown(value, 300))
    return number(value)
