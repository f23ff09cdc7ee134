"""What moved between two fits, as one page."""

from pathlib import Path
from typing import Any, Final

from sonde.core.wording import gib
from sonde.report._format import plural, shown
from sonde.report._markup import ElementIds, Markup, code, el, join
from sonde.report._parts import drawer, figure, table, tabled
from sonde.report._picture import Numbers
from sonde.report._pictures_drift import (
    angles_picture,
    grid_picture,
    mean_picture,
    question,
    units_picture,
)
from sonde.report.document import Head, Section, document_page, save_document
from sonde.report.drift_terminal import UNMOVED, verdict

_NO_UNITS: Final = "No histogram of units was held that tells their values apart."
_ROWS: Final = {
    "same": "the same on both sides: compared one by one",
    "some": "some stand on both sides",
    "other": "different ones on the two sides",
}


def drift_to_html(found: dict[str, Any]) -> str:
    """Return a drift as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a drift, ``sonde-drift/1``.
    """
    names = ElementIds()
    units = units_picture(found)
    drawn = figure(units, names) if units else el("p", _NO_UNITS, cls="empty")
    return document_page(
        found,
        _head(found),
        [
            _where(found, names),
            Section("units", "Units", [drawn]),
            _directions(found, names),
            _comparisons(found, names),
            _states(found, names),
        ],
    )


def save_drift(found: dict[str, Any], path: str | Path) -> Path:
    """Write a drift as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, drift_to_html, "save_drift")


def _head(found: dict[str, Any]) -> Head:
    level = "warning" if found["moved"] else "clear" if found["moved"] is False else "withheld"
    label = {"warning": "moved", "clear": "not moved", "withheld": "not tested"}[level]
    facts = [
        ("first, the reference", _side(found["first"])),
        ("second", _side(found["second"])),
        ("rows", _ROWS[found["rows"]]),
        ("model", "the same" if found["same_model"] else _models(found)),
        ("level", f"{found['level']:g}, corrected ({found['correction']})"),
    ]
    return Head(
        "drift",
        "What moved between two fits",
        verdict(found),
        facts,
        subject="What moved",
        badge=(level, label),
        notes=found["notes"],
    )


def _side(side: dict[str, Any]) -> str:
    groups = f" in {plural(side['n_groups'], 'group')}" if side["n_groups"] else ""
    return f"{shown(side['name'], 120)}: {plural(side['n_examples'], 'example')}{groups}"


def _models(found: dict[str, Any]) -> str:
    marks = [found[word]["model"] for word in ("first", "second")]
    if None in marks:
        return "not known: the rows are arrays"
    return f"two: fingerprints {marks[0][:12]} and {marks[1][:12]}"


def _where(found: dict[str, Any], names: ElementIds) -> Section:
    columns = ("site", "moved", "adjusted p", "clearest in", "moved in", "units moved")
    rows = tuple(
        (
            s["site"],
            "not tested" if s["moved"] is None else "yes" if s["moved"] else "no",
            s["adjusted"],
            None if s["clearest"] is None else question(s["clearest"]),
            ", ".join(question(method) for method in s["by"]) or None,
            s["n_units_moved"],
        )
        for s in found["sites"]
    )
    made = grid_picture(found)
    parts = [figure(made, names)] if made else []
    parts.append(tabled(Numbers(columns, rows, "sites"), names, "Sites", opened=len(rows) <= 16))
    lead = "A site moved where one of its comparisons did. p-values are those of one test."
    if found["correction"] == "holm":
        lead = "A site moved where one of its comparisons did, with at most the level's chance of "
        lead += "a single false alarm over the whole page."
    return Section("where", "What moved where", parts, lead)


def _directions(found: dict[str, Any], names: ElementIds) -> Section:
    parts: list[Markup] = [
        figure(made, names)
        for made in (mean_picture(found), angles_picture(found))
        if made is not None
    ]
    if found["direction"] is not None:
        parts.append(_moved_most(found, names))
    if not parts:
        parts.append(el("p", UNMOVED, cls="empty"))
    return Section("directions", "Directions", parts)


def _moved_most(found: dict[str, Any], names: ElementIds) -> Markup:
    site, vector = found["direction"]["site"], found["direction"]["vector"]
    heading = join(el("h3", "The direction that moved most"), el("p", code(site)))
    if vector is None:
        return join(heading, el("p", "Too wide for this page.", cls="empty"))
    order = sorted(range(len(vector)), key=lambda unit: -abs(vector[unit]))
    rows = tuple((str(unit), vector[unit]) for unit in order)
    numbers = Numbers(("unit", "component"), rows, "direction")
    return join(heading, tabled(numbers, names, "Unit vector, the largest components first"))


def _comparisons(found: dict[str, Any], names: ElementIds) -> Section:
    columns = (
        "site", "method", "value", "no change", "p", "adjusted", "first", "second", "rows", "flags",
    )  # fmt: skip
    rows = tuple(
        (
            c["site"],
            c["method"],
            c["value"],
            c["null"],
            c["p"],
            c["adjusted"],
            c["n_first"],
            c["n_second"],
            "; ".join(dict.fromkeys(c["basis"])),
            ", ".join(c["flags"]) or None,
        )
        for c in found["comparisons"]
    )
    parts = [tabled(Numbers(columns, rows, "comparisons"), names, "Comparisons", opened=True)]
    if found["left_out"]:
        left = tuple((e["site"], e["method"], e["reason"]) for e in found["left_out"])
        numbers = Numbers(("site", "method", "reason"), left, "left out")
        parts.append(drawer(f"Left out ({len(left)})", table(numbers, names)))
    lead = "Value: a size, to be read beside what it would be without any change. First and second:"
    lead += " independent rows, groups where rows come in groups."
    return Section("comparisons", "All comparisons", parts, lead)


def _states(found: dict[str, Any], names: ElementIds) -> Section:
    columns = ("site", "side", "state", "part", "bytes", "read by")
    rows = tuple(
        (s["site"], s["side"], s["statistic"], s["part"], s["bytes"], ", ".join(s["read_by"]))
        for s in found["states"]
    )
    total = sum(s["bytes"] for s in found["states"])
    lead = f"{plural(len(rows), 'state')}, {gib(total)} in all."
    sides = [el("p", code(found[word]["name"])) for word in ("first", "second")]
    made = tabled(Numbers(columns, rows, "states"), names, "States")
    return Section("states", "States", [*sides, made], lead)
