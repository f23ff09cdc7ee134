"""The document of an atlas: what activates each unit or feature."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from sonde.report._format import number, plural, share, shown
from sonde.report._markup import Markup, el
from sonde.report._picture import Numbers
from sonde.report.document import Document, Drawing, Section, Table

MOST: Final = 10
"""Number of units that a terminal shows."""


def document(found: dict[str, Any]) -> Document:
    """Return an atlas as a document: the clearest units, and a browser of all units.

    Parameters
    ----------
    found : dict
        JSON of an atlas, ``sonde-units/1``.
    """
    what = "feature" if found["dictionary"] else "unit"
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", f"{shown(found['data'], 120)}, {plural(found['n'], 'row')}"),
        ("site", shown(found["site"], 120)),
        ("dictionary", shown(found["dictionary"], 120) if found["dictionary"] else None),
    ]
    return Document(
        "units",
        f"What does each {what} respond to?",
        _verdict(found),
        facts,
        [_units(found), _clearest(found)],
        subject=f"{shown(found['site'], 60)} of {shown(found['model'], 60)}",
        script=files("sonde.report").joinpath("assets", "units.js").read_text("utf-8"),
    )


def _verdict(found: dict[str, Any]) -> str:
    """Return one sentence on the numbers of units, of labelled units and of dead units."""
    what = "feature" if found["dictionary"] else "unit"
    n = len(found["units"])
    dead = sum(len(u["histogram"]["counts"]) == 1 for u in found["units"])
    words = f"{plural(n, what)} at {found['site']} over {plural(found['n'], 'row')}"
    if found["labelled"] is not None:
        words += f"; {share(found['labelled'])} follow a label"
    words += f"; {dead:,} never change" if dead else ""
    words += f"; {loss_text(found['loss'])}" if found["loss"] else ""
    return f"{words}."


def loss_text(loss: Mapping[str, Any]) -> str:
    """Describe how much of a model's loss a dictionary's reconstruction recovers."""
    of = "an unknown fraction" if loss["value"] is None else share(loss["value"])
    return (
        f"rebuilt states recover {of} of the loss ({number(loss['rebuilt'])} nats; "
        f"{number(loss['clean'])} with the original states, {number(loss['mean'])} with the mean)"
    )


def _clearest(found: dict[str, Any]) -> Section | None:
    """Return the units with the clearest labels, or else tokens, for a terminal."""
    if found["labelled"] is not None:
        best = sorted(found["units"], key=lambda u: -(u["overlap"] or 0.0))[:MOST]
        columns = ("unit", "label", "overlap", "by chance", "follows")
        rows = tuple((str(u["unit"]), u["concept"], u["overlap"], u["chance"],
                      "yes" if u["labelled"] else "no") for u in best)  # fmt: skip
    elif found["units"] and "writes" in found["units"][0]:
        best = sorted(found["units"], key=lambda u: -(u["z"] or 0.0))[:MOST]
        columns = ("unit", "writes")
        rows = tuple((str(u["unit"]), " ".join(repr(t) for t, _ in u["writes"][:5])) for u in best)
    else:
        return None
    table = Table(Numbers(columns, rows, "clearest"))
    return Section("clearest", "Clearest units", [table], where="terminal")


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
    lead = (
        "Highest rows, and rows of every lower range: the inputs to which a unit usually "
        "responds can differ from those of its highest values. A unit follows a label if the "
        "rows on which it is high are those of the label: their overlap, at the best threshold "
        "for that label, is at least halfway between 1 and the overlap of a unit that is always "
        "high."
    )
    has_inputs = bool(found["inputs"]) or any(
        "t" in row for u in found["units"] for row in u["rows"]
    )
    lead += "" if has_inputs else " Inputs are left out (--no-inputs)."
    finder = el("p", field, " ", order, " ", count, cls="unit-find")
    return Section("units", "Units", [Drawing(finder), Drawing(drawers)], lead, where="page")


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
