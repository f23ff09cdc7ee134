"""Judged explanations as text for a terminal of 80 columns."""

from textwrap import wrap
from typing import Any

from sonde.report._answers_words import place_of
from sonde.report._explained_words import answer_sentence
from sonde.report._format import number, plural, share, shown

COLUMNS = 80
MOST_ANSWERS = 10
LEGEND = """effect     insertion less deletion beyond random orders, as a share of what all
           places are worth together: 0 as random orders, 1 all at once
deletion   area under the answer while places go, largest first; low is good
insertion  the same while they come, largest first; high is good
wrong      share of the largest places whose sign is wrong (-: has no signs)
redrawn    likeness to the map after all weights are redrawn; above .5 it shows
           the input and the architecture, not what was learned"""


def explain_verdict(found: dict[str, Any]) -> str:
    """Return which explanation can be believed here, or that none can.

    Parameters
    ----------
    found : dict
        JSON of an explanation, ``sonde-explain/1``.
    """
    if found["best"] is None:
        return (
            "No explanation can be believed here: none finds what the answers hang on clearly "
            "better than random orders, with signs that hold, on all inputs or on those of a class."
        )
    best = next(one for one in found["methods"] if one["method"] == found["best"])
    learned = (
        "and changes with what was learned"
        if best["sanity"]["passed"]
        else "but looks the same after the weights are redrawn, so input and architecture make it"
    )
    held = best["verdict"]
    others = plural(found["n"] - held["n"], "input") if held["label"] is not None else ""
    where = "here" if not others else f"for answers of {shown(held['label'], 40)}"
    said = (
        f"Believe {shown(found['best'], 60)} {where}: its effect is {number(held['effect'])} (0 as "
        f"random orders, 1 all at once), above 0 on {held['better']} of {held['n']} inputs, "
        f"{learned}."
    )
    return f"{said} Of the other {others} it is not shown." if others else said


def explain_to_text(found: dict[str, Any]) -> str:
    """Return the first answers, the verdict and a line for each method."""
    lines = [*_answers(found), *wrap(explain_verdict(found), COLUMNS), ""]
    what = f"{plural(found['n'], 'answer')}; {found['objective']} at {shown(found['site'], 40)}"
    lines += [
        what,
        "",
        f"{'method':<31}{'effect':>6}{'deletion':>14}{'insertion':>14}{'wrong':>6}{'redrawn':>9}",
    ]
    for one in found["methods"]:
        cells = [_curve(one["deletion"]), _curve(one["insertion"]), _violation(one["violation"])]
        name = ("* " if one["believable"] else "  ") + shown(one["method"], 29)
        effect = "–" if one["effect"] is None else f"{one['effect']:.2f}"
        redrawn = number(one["sanity"]["value"])
        lines.append(f"{name:<31}{effect:>6}{cells[0]:>14}{cells[1]:>14}{cells[2]:>6}{redrawn:>9}")
        if one["verdict"]["label"] is not None:
            lines += [f"    {_of_class(of)}" for of in one["classes"] if of["believable"]]
        if one["flags"]:
            lines.append(f"    {', '.join(one['flags'])}")
    if found.get("features"):
        lines += ["", f"{'feature':<18}{'effect':>16}{'taken out':>16}{'active rows':>16}"]
        lines += [
            f"{one['feature']:<18}{number(one['value']):>16}{number(one['ablated']):>16}"
            f"{share(one['active']):>16}"
            for one in found["features"]
        ]
    lines += ["", "* can be believed; in brackets the same for random orders", *LEGEND.splitlines()]
    return "\n".join(lines)


def _answers(found: dict[str, Any]) -> list[str]:
    """Return the first answers in words, each with its place."""
    best = found["best"] or found["methods"][0]["method"]
    lines: list[str] = []
    for example in found["examples"][:MOST_ANSWERS]:
        shape = example["attributions"][best]["shape"]
        said = answer_sentence(example, shape, found["places"])
        lines += (
            wrap(f"{place_of(example)}: {said}", COLUMNS, subsequent_indent="  ") if said else []
        )
    return [*lines, ""] if lines else []


def _of_class(held: dict[str, Any]) -> str:
    return (
        f"holds for answers of {shown(held['label'], 24)}: effect {number(held['effect'])}, above 0"
        f" on {held['better']} of {held['n']}"
    )


def _curve(figure: dict[str, Any]) -> str:
    return f"{number(figure['value'])} ({number(figure['random'])})"


def _violation(figure: dict[str, Any]) -> str:
    return share(figure["value"], 2) if figure["signed"] else "–"
