"""Judged explanations, as one page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.report._answers_words import place_of
from sonde.report._explained_words import answer_sentence
from sonde.report._format import plural, shown
from sonde.report._markup import ElementIds, Markup, code, el
from sonde.report._parts import table
from sonde.report._picture import Numbers
from sonde.report.document import Head, Section, document_page, save_document
from sonde.report.explain_terminal import explain_verdict
from sonde.report.pictures import heat_map, tokens

Shown = Mapping[str, Any]
"""What is drawn of an example: ``pixels`` of a picture, or ``pieces`` of a text."""


def explain_to_html(found: dict[str, Any], shown_inputs: Sequence[Shown] = ()) -> str:
    """Return an explanation as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of an explanation, ``sonde-explain/1``.
    shown_inputs : sequence of mapping, optional
        ``pixels`` or ``pieces`` of each example, where inputs may be shown.
    """
    names = ElementIds()
    parts = [_examples(found, shown_inputs, names), _methods(found, names)]
    if found.get("features"):
        parts.append(_features(found["features"], names))
    return document_page(found, _head(found), parts)


def save_explain(
    found: dict[str, Any], path: str | Path, shown_inputs: Sequence[Shown] = ()
) -> Path:
    """Write an explanation as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(
        found, path, lambda found: explain_to_html(found, shown_inputs), "save_explain"
    )


def _head(found: dict[str, Any]) -> Head:
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", f"{shown(found['data'], 120)}, {plural(found['n'], 'answer')}"),
        ("explained", f"{found['objective']} at {shown(found['site'], 80)}"),
    ]
    return Head(
        "explain",
        "Why these answers?",
        explain_verdict(found),
        facts,
        subject=f"{shown(found['model'], 60)} on {shown(found['data'], 60)}",
        badge=("withheld", "none") if found["best"] is None else ("clear", "holds"),
    )


def _methods(found: dict[str, Any], names: ElementIds) -> Section:
    columns = (
        "method",
        "holds",
        "effect",
        "better on",
        "deletion",
        "at random",
        "insertion",
        "at random",
    )
    columns += ("wrong signs", "redrawn", "flags")
    rows = tuple(
        (
            one["method"],
            _holds(one),
            one["effect"],
            f"{one['verdict']['better']} of {one['verdict']['n']}",
            one["deletion"]["value"],
            one["deletion"]["random"],
            one["insertion"]["value"],
            one["insertion"]["random"],
            one["violation"]["value"] if one["violation"]["signed"] else None,
            one["sanity"]["value"],
            ", ".join(one["flags"]) or None,
        )
        for one in found["methods"]
    )
    lead = (
        "Effect: insertion less deletion beyond random orders, as a share of what all places are "
    )
    lead += (
        "worth together; 0 is as random orders, 1 all at once. Better on: inputs with an effect "
    )
    lead += "above 0. Deletion: area under the answer's probability while the places with the "
    lead += "largest attribution go first; low is good. Insertion: while they come first; high is "
    lead += "good. "
    lead += "At random: the same for random orders. Wrong signs: how often the largest place moves "
    lead += "the answer against its sign; half is a coin. Redrawn: likeness to the map after all "
    lead += "weights are redrawn; above .5 it shows the input and the architecture."
    numbers = Numbers(columns, rows, "methods")
    return Section("methods", "Which explanation holds", [table(numbers, names)], lead)


def _holds(one: dict[str, Any]) -> str:
    """Return where an attribution can be believed: everywhere, for some classes, or nowhere."""
    if not one["believable"]:
        return "no"
    if one["verdict"]["label"] is None:
        return "yes"
    held = [shown(of["label"], 24) for of in one["classes"] if of["believable"]]
    return f"for {', '.join(held)}"


def _features(features: Sequence[dict[str, Any]], names: ElementIds) -> Section:
    rows = tuple((str(f["feature"]), f["value"], f["ablated"], f["active"]) for f in features)
    lead = "Effect: activation times the slope of the answer along the feature's direction, the "
    lead += "mean over answers. Taken out: what answers do lose without the feature; where the two "
    lead += "differ, the slope says little. Active: share of places."
    numbers = Numbers(("feature", "effect", "taken out", "active"), rows, "features")
    return Section("features", "Which features the answers hang on", [table(numbers, names)], lead)


def _examples(found: dict[str, Any], shown_inputs: Sequence[Shown], names: ElementIds) -> Section:
    best = found["best"] or found["methods"][0]["method"]
    made: list[Markup] = []
    for i, example in enumerate(found["examples"]):
        given = shown_inputs[i] if i < len(shown_inputs) else {}
        drawn = example["attributions"][best]
        said = answer_sentence(example, drawn["shape"], found["places"], given.get("pieces", ()))
        title = el("h3", f"{i}: ", code(place_of(example)))
        made += [title, *([el("p", said)] if said else [])]
        made.append(_drawn(drawn, given, found["places"], names))
    lead = f"Attributions by {best}: what is warm raises the answer."
    lead += "" if shown_inputs else " Inputs are left out (--no-inputs)."
    return Section("examples", "Answers, one by one", made, lead)


def _drawn(
    attribution: dict[str, Any], given: Shown, places: Sequence[str], names: ElementIds
) -> Markup:
    values, shape = attribution["values"], attribution["shape"]
    values = [0.0 if v is None else v for v in values]
    if len(shape) == 2:
        grid = [(line, column) for line in range(shape[0]) for column in range(shape[1])]
        return el("div", Markup(str(heat_map(given.get("pixels"), values, grid))), cls="inside")
    pieces = given.get("pieces")
    if pieces:
        return el("div", Markup(str(tokens(pieces, values[: len(pieces)]))), cls="inside")
    order = sorted(range(len(values)), key=lambda i: -math.fabs(values[i]))[:10]
    named = places if len(places) == len(values) else list(map(str, range(len(values))))
    rows = tuple((named[i], values[i]) for i in order)
    return table(Numbers(("place", "attribution"), rows, "places"), names)
