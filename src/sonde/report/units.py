"""An atlas of units or features, as one page that works offline."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from sonde.report._format import number, plural, share, shown
from sonde.report._markup import Markup, el
from sonde.report.document import Head, Section, document_page, save_document
from sonde.report.units_terminal import units_verdict


def units_to_html(found: dict[str, Any]) -> str:
    """Return an atlas as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of an atlas, ``sonde-units/1``.
    """
    script = files("sonde.report").joinpath("assets", "units.js").read_text("utf-8")
    return document_page(found, _head(found), [_units(found)], script=script)


def save_units(found: dict[str, Any], path: str | Path) -> Path:
    """Write an atlas as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, units_to_html, "save_units")


def _head(found: dict[str, Any]) -> Head:
    what = "feature" if found["dictionary"] else "unit"
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", f"{shown(found['data'], 120)}, {plural(found['n'], 'row')}"),
        ("site", shown(found["site"], 120)),
        ("dictionary", shown(found["dictionary"], 120) if found["dictionary"] else None),
    ]
    return Head(
        "units",
        f"What does each {what} stand for?",
        units_verdict(found),
        facts,
        subject=f"{shown(found['site'], 60)} of {shown(found['model'], 60)}",
    )


def _units(found: dict[str, Any]) -> Section:
    field = el(
        "input",
        id="unit-search",
        type="search",
        placeholder="number, label or token",
        aria_label="Find units",
    )
    orders = [("unit", "by number"), ("max", "highest value first")]
    orders += [("overlap", "clearest label first")] if found["labelled"] is not None else []
    orders += [("kl", "moves answers most")] if any("clamped" in u for u in found["units"]) else []
    order = el(
        "select",
        *(el("option", text, value=value) for value, text in orders),
        id="unit-order",
        aria_label="Order of units",
    )
    count = el("span", "", id="unit-count", role="status")
    drawers = el("div", *(_drawer(unit) for unit in found["units"]), id="unit-list")
    lead = "Highest rows, and rows of every range below, for what a unit does most of the time is "
    lead += "not what it does at its highest. A label is the concept whose rows are those on which "
    lead += "the unit is high; it holds where the overlap is far above chance."
    has_inputs = bool(found["inputs"]) or any(
        "t" in row for u in found["units"] for row in u["rows"]
    )
    lead += "" if has_inputs else " Inputs are left out (--no-inputs)."
    return Section(
        "units", "Units", [el("p", field, " ", order, " ", count, cls="unit-find"), drawers], lead
    )


def _drawer(unit: dict[str, Any]) -> Markup:
    words = [f"unit {unit['unit']}"]
    if unit.get("labelled"):
        words.append(f"{shown(unit['concept'], 40)} ({number(unit['overlap'])})")
    tokens = [shown(token, 20) for token, _ in unit.get("writes", ())[:3]]
    if tokens:
        words.append("writes " + " ".join(tokens))
    words.append(f"up to {number(unit['max'])}, above 0 on {share(unit['above'])}")
    named = [str(unit.get("concept", "")) if unit.get("labelled") else "", *tokens]
    return el(
        "details",
        el("summary", " · ".join(words), el("span", cls="unit-seen")),
        el("div", cls="inside"),
        cls="unit",
        id=f"unit-{unit['unit']}",
        data_unit=str(unit["unit"]),
        data_words=" ".join(named),
    )
