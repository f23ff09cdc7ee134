"""The document of tested explanations of a model's answers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sonde.report._answers_words import place_of
from sonde.report._explained_words import answer_sentence
from sonde.report._format import number, plural, share, shown
from sonde.report._markup import Markup, el
from sonde.report._picture import Numbers
from sonde.report.document import Document, Drawing, Part, Prose, Section, Table
from sonde.report.pictures import heat_map, tokens
from sonde.run.explaining.judged import ENOUGH

Shown = Mapping[str, Any]
"""Keys of an example: ``pixels`` of an image, ``pieces`` of a text, or ``values`` of a row."""
MOST_ANSWERS: Final = 10
"""Number of answers that a terminal describes in words."""
_MEANINGS: Final = {
    "holds": "inputs on which the explanation is reliable",
    "effect": "insertion minus deletion, relative to random orders, as a fraction of the effect of "
    "all positions together: 0 is no better than random, 1 is perfect",
    "its 95 %": "the 95 % interval of the effect, over inputs",
    "better on": "inputs with an effect above 0",
    "deletion": "area under the answer's probability, or number, while positions are "
    "deleted by decreasing attribution; low is good",
    "insertion": "the same area while positions are inserted in that order; high is good",
    "deletion, random": "deletion area for random orders",
    "insertion, random": "insertion area for random orders",
    "wrong signs": "fraction of inputs in which deleting the position with the largest "
    "attribution moves the answer against its sign; 0.5 is chance",
    "redrawn": "similarity to the map after all weights are randomised; above .5 the map "
    "reflects the input and the architecture, not what was learned",
}
_BRIEF: Final = (
    "method", "holds", "effect", "its 95 %", "deletion", "insertion", "wrong signs", "redrawn",
)  # fmt: skip


def document(found: dict[str, Any], shown_inputs: Sequence[Shown] = ()) -> Document:
    """Return an explanation as a document: what answers depend on, and reliable methods.

    Parameters
    ----------
    found : dict
        JSON of an explanation, ``sonde-explain/1``.
    shown_inputs : sequence of mapping, optional
        ``pixels`` or ``pieces`` of each example, where inputs may be shown.
    """
    against = found.get("baseline")
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", f"{shown(found['data'], 120)}, {plural(found['n'], 'answer')}"),
        ("explained", f"{found['objective']} at {_where(found)}"),
        *([("held as given", shown(found["held"], 120))] if found.get("held") else []),
        *([("not run", _not_run(found["not_run"]))] if found.get("not_run") else []),
        *(
            ("left out", f"{shown(word, 60)}: {shown(reason, 200)}")
            for word, reason in (found.get("refused") or {}).items()
        ),
        *([("taken away", f"replaced by: {shown(against, 80)}")] if against else []),
    ]
    features = found.get("features")
    return Document(
        "explain",
        "Why these answers?",
        _verdict(found),
        facts,
        [
            _examples(found, shown_inputs),
            _methods(found),
            _features(features) if features else None,
        ],
        subject=f"{shown(found['model'], 60)} on {shown(found['data'], 60)}",
        badge=("withheld", "none") if found["best"] is None else ("clear", "holds"),
    )


def _not_run(methods: Sequence[str]) -> str:
    names = ", ".join(shown(method, 60) for method in methods)
    return f"{names}: no time was left (--seconds 0 runs all methods)"


def _verdict(found: dict[str, Any]) -> str:
    """Return which explanation is reliable here, or that none is."""
    few = [one for one in found["methods"] if one["verdict"].get("open")]
    if found["best"] is None and few:
        one = few[0]
        return (
            f"{plural(found['n'], 'input').capitalize()} are too few to show whether an "
            f"explanation is reliable: {shown(one['method'], 60)} ranks the decisive parts "
            f"better than chance in each of them (effect {number(one['verdict']['effect'])}; 0 "
            "is no better than random orders, 1 is perfect), which may be chance. Explain "
            f"{ENOUGH} or more."
        )
    if found["best"] is None:
        return (
            "No explanation is reliable here: no method ranks the decisive parts of the inputs "
            "significantly better than random orders with correct signs, on all inputs or on "
            "those of a class."
        )
    best = next(one for one in found["methods"] if one["method"] == found["best"])
    learned = (
        "and its map depends on what was learned"
        if best["sanity"]["passed"]
        else "but hardly changes when the weights are randomised, so it reflects the input and "
        "the architecture"
    )
    held = best["verdict"]
    others = plural(found["n"] - held["n"], "input") if held["label"] is not None else ""
    where = "here" if not others else f"for answers of {shown(held['label'], 40)}"
    words = (
        f"Trust {shown(found['best'], 60)} {where}: its effect is {number(held['effect'])} (0 is "
        f"no better than random orders, 1 is perfect), above 0 on {held['better']} of "
        f"{held['n']} inputs, {learned}.{_rivals(found)}"
    )
    return f"{words} The other {others} are not shown to be reliable." if others else words


def _rivals(found: dict[str, Any]) -> str:
    """Return the methods that are as good as the best one, or have a larger effect."""
    words, of = "", {one["method"]: one for one in found["methods"]}
    if equal := found.get("not_apart"):
        words = (
            " Not significantly different from it (95 %): "
            f"{', '.join(shown(w, 60) for w in equal)}."
        )
    for word in found.get("larger", ()):
        words += (
            f" {shown(word, 60)} has a larger effect ({number(of[word]['effect'])}), but "
            f"{_fault(found, of[word])}."
        )
    return words


def _fault(found: dict[str, Any], rival: dict[str, Any]) -> str:
    """Return why a method with a larger effect than the best one is not reliable."""
    best = next(one for one in found["methods"] if one["method"] == found["best"])
    label, all_inputs = best["verdict"]["label"], rival["violation"]
    if label is not None:
        (held,) = [one for one in rival["classes"] if one["label"] == label]
        return f"the wrong sign on {held['wrong']} of {plural(held['moved'], 'input')}"
    if all_inputs["signed"] and all_inputs["high"] >= 0.5:
        words = f"the wrong sign on {share(all_inputs['value'])} of the inputs (95 %: up to "
        words += f"{share(all_inputs['high'])}; 50 % is chance)"
    else:
        words = "not significantly on all inputs"
    of_class = rival["verdict"]["label"]
    if not rival["believable"] or of_class is None:
        return words
    return f"{words}; it is reliable for answers of {shown(of_class, 40)}"


def _methods(found: dict[str, Any]) -> Section:
    columns = (
        "method", "holds", "effect", "its 95 %", "better on", "deletion", "deletion, random",
        "insertion", "insertion, random", "wrong signs", "redrawn", "flags",
    )  # fmt: skip
    rows = tuple(
        (
            one["method"],
            _holds(one),
            one["effect"],
            _interval(one),
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
    kinds = {"wrong signs": "share"}
    table = Table(Numbers(columns, rows, "methods"), kinds=kinds, meanings=_MEANINGS, brief=_BRIEF)
    return Section("methods", "Which explanation holds", [table])


def _interval(one: dict[str, Any]) -> str | None:
    """Return the interval of an effect, or None if it is not known."""
    low, high = one.get("effect_range") or (None, None)
    return None if low is None or high is None else f"{number(low)} to {number(high)}"


def _holds(one: dict[str, Any]) -> str:
    """Return where an attribution is reliable: everywhere, for some classes, or nowhere."""
    if not one["believable"]:
        return "too few" if one["verdict"].get("open") else "no"
    if one["verdict"]["label"] is None:
        return "yes"
    held = [shown(of["label"], 24) for of in one["classes"] if of["believable"]]
    return f"for {', '.join(held)}"


def _features(features: Sequence[dict[str, Any]]) -> Section:
    rows = tuple((str(f["feature"]), f["value"], f["ablated"], f["active"]) for f in features)
    lead = "Effect: activation times the slope of the answer along the feature's direction, the "
    lead += "mean over answers. Taken out: the measured change without the feature; if the two "
    lead += "differ, the slope is a poor estimate. Active: fraction of positions."
    numbers = Numbers(("feature", "effect", "taken out", "active"), rows, "features")
    table = Table(numbers, kinds={"active": "share"})
    return Section("features", "Which features the answers depend on", [table], lead)


def _examples(found: dict[str, Any], shown_inputs: Sequence[Shown]) -> Section:
    best = found["best"] or found["methods"][0]["method"]
    parts: list[Part] = []
    for i, example in enumerate(found["examples"]):
        given = shown_inputs[i] if i < len(shown_inputs) else {}
        drawn = example["attributions"][best]
        sentence = answer_sentence(
            example, drawn["shape"], found["places"], given.get("pieces", ())
        )
        parts.append(Prose(f"{i}: {place_of(example)}", "heading", "page"))
        if sentence:
            line = Prose(f"{place_of(example)}: {sentence}", where="terminal")
            parts += [Prose(sentence, where="page"), *([line] if i < MOST_ANSWERS else [])]
        parts.append(_drawn(drawn, given, found["places"]))
    if not shown_inputs:
        parts.insert(0, Prose("Inputs are left out (--no-inputs).", "small", "page"))
    signed = any(m["method"] == best and m["violation"]["signed"] for m in found["methods"])
    warm = (
        "raises the answer" if signed else "marks the parts that change the answer most, up or down"
    )
    lead = f"Attributions by {best}: warm colour {warm}."
    return Section("examples", "Answers, one by one", parts, lead)


def _where(found: dict[str, Any]) -> str:
    """Return the explained site, with the names of the model's inputs."""
    site, inputs = shown(found["site"], 80), found.get("inputs")
    return f"{site} ({shown(inputs, 120)})" if inputs and site == "input" else site


def _drawn(attribution: dict[str, Any], given: Shown, places: Sequence[str]) -> Part:
    values, shape = attribution["values"], attribution["shape"]
    values = [0.0 if v is None else v for v in values]
    if len(shape) == 2:
        grid = [(line, column) for line in range(shape[0]) for column in range(shape[1])]
        return Drawing(_inside(heat_map(given.get("pixels"), values, grid)))
    pieces = given.get("pieces")
    if pieces:
        return Drawing(_inside(tokens(pieces, values[: len(pieces)])))
    order = sorted(range(len(values)), key=lambda i: -math.fabs(values[i]))[:10]
    named = places if len(places) == len(values) else list(map(str, range(len(values))))
    row = given.get("values") or ()
    if len(row) == len(values):
        held = tuple((named[i], row[i], values[i]) for i in order)
        return Table(Numbers(("place", "value", "attribution"), held, "places"), where="page")
    rows = tuple((named[i], values[i]) for i in order)
    return Table(Numbers(("place", "attribution"), rows, "places"), where="page")


def _inside(svg: object) -> Markup:
    return el("div", Markup(str(svg)), cls="inside")
