"""Judged explanations as text for a terminal of 80 columns."""

from textwrap import wrap
from typing import Any

from sonde.report._format import number, plural, share, shown

COLUMNS = 80
LEGEND = """deletion   area under the answer while places go, largest first; low is good
insertion  the same while they come, largest first; high is good
violation  share of the largest places whose sign is wrong (-: has no signs)
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
            "No explanation can be believed here: none is clearly better than random orders, with "
            "signs that hold."
        )
    best = next(one for one in found["methods"] if one["method"] == found["best"])
    learned = (
        "and changes with what was learned"
        if best["sanity"]["passed"]
        else "but looks the same after the weights are redrawn, so input and architecture make it"
    )
    return f"Believe {shown(found['best'], 60)} here: it finds what the answers hang on, {learned}."


def explain_to_text(found: dict[str, Any]) -> str:
    """Return the verdict and a line for each method."""
    lines = [*wrap(explain_verdict(found), COLUMNS), ""]
    what = f"{plural(found['n'], 'answer')}; {found['objective']} at {shown(found['site'], 40)}"
    lines += [
        what,
        "",
        f"{'method':<31}{'deletion':>14}{'insertion':>14}{'violation':>11}{'redrawn':>9}",
    ]
    for one in found["methods"]:
        cells = [_curve(one["deletion"]), _curve(one["insertion"]), _violation(one["violation"])]
        name = ("* " if one["believable"] else "  ") + shown(one["method"], 29)
        redrawn = number(one["sanity"]["value"])
        lines.append(f"{name:<31}{cells[0]:>14}{cells[1]:>14}{cells[2]:>11}{redrawn:>9}")
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


def _curve(figure: dict[str, Any]) -> str:
    return f"{number(figure['value'])} ({number(figure['random'])})"


def _violation(figure: dict[str, Any]) -> str:
    return share(figure["value"], 2) if figure["signed"] else "–"
