"""Two models on the same inputs, as text for a terminal of 80 columns."""

from textwrap import wrap
from typing import Any

from sonde.core.wording import plural
from sonde.report._format import number, share, shown

COLUMNS = 80
MOST_SITES = 24
FOUND_AGAIN = 0.7
PARTED = 0.9
"""Layers of one name that are less alike than this are said to have parted."""
LEGEND = """CKA        debiased: 1 is the same geometry, 0 nothing in common
near       share of common nearest neighbours
A->B       variance of B that a linear map of A explains, beyond chance
moved      change of a state in its own spreads (same name and width)"""


def compare_verdict(found: dict[str, Any]) -> str:
    """Return in a sentence whether two models answer alike, and where their layers part.

    Parameters
    ----------
    found : dict
        JSON of a comparison, ``sonde-compare/1``.
    """
    said: list[str] = []
    both = found["answers"]
    if both is not None:
        text = f"The same answer to {share(both['same'])}"
        said.append(f"{text} ({number(both['divergence'])} nats apart).")
    known = [m for m in found["matches"] if m["cka"] is not None]
    if not known:
        return " ".join([*said, "No layer has variance enough to be compared."])
    named = [m for m in known if m["site"] == m["other"]]
    if not named:
        best = max(known, key=lambda m: m["cka"])
        pair = f"{shown(best['site'], 40)} and {shown(best['other'], 40)}"
        said.append(f"No layers of one name; most alike are {pair} (CKA {number(best['cka'])}).")
    elif all(m["movement"] is not None and m["movement"]["size"] == 0.0 for m in named):
        said.append("Every state is the same.")
    else:
        parted = next((m for m in named if m["cka"] < PARTED), None)
        least = min(named, key=lambda m: m["cka"])
        if parted is None:
            said.append(
                f"Layers of one name stay alike: the least, {shown(least['site'], 40)}, has CKA "
                f"{number(least['cka'])}."
            )
        else:
            said.append(
                f"Layers of one name part at {shown(parted['site'], 40)} (CKA "
                f"{number(parted['cka'])}), most at {shown(least['site'], 40)} "
                f"({number(least['cka'])})."
            )
    return " ".join(said)


def compare_to_text(found: dict[str, Any]) -> str:
    """Return the verdict, the answers and a line for each site of the first model."""
    lines = [*wrap(compare_verdict(found), COLUMNS), ""]
    for each in found.get("findings", []):
        lines += wrap(f"{each['code']} {shown(each['sentence'], 240)}", COLUMNS)
    lines += [""] if found.get("findings", []) else []
    both = found["answers"]
    if both is not None and both["loss"][0] is not None:
        lines += [
            f"{'':<12}{'first':>12}{'second':>12}",
            f"{'right':<12}{share(both['right'][0]):>12}{share(both['right'][1]):>12}",
            f"{'loss (nats)':<12}{number(both['loss'][0]):>12}{number(both['loss'][1]):>12}",
            "",
        ]
    head = f"{'site':<28}{'CKA':>14}{'near':>8}{'A->B':>8}{'B->A':>8}{'moved':>9}"
    lines.append(head)
    lines += [_line(m) for m in found["matches"][:MOST_SITES]]
    left = len(found["matches"]) - MOST_SITES
    lines += [f"and {plural(left, 'more site')}"] if left > 0 else []
    lines += ["", *LEGEND.splitlines(), ""]
    lines += wrap(rows_sentence(found), COLUMNS)
    return "\n".join(lines)


def rows_sentence(found: dict[str, Any]) -> str:
    """Return on how many rows the figures stand."""
    text = f"From {plural(found['n_rows'], 'row')} that both models have"
    text += ", one of each group in CKA" if found["grouped"] else ""
    missing = found["n_missing"]
    return f"{text}; {plural(missing, 'row')} of one alone left out." if missing else f"{text}."


def _line(match: dict[str, Any]) -> str:
    name = match["site"]
    if match["other"] != match["site"]:
        name = f"{_tail(name, 12)} ~ {_tail(match['other'], 12)}"
    error = "" if match["cka_se"] is None else f" ±{number(match['cka_se'], 1)}"
    moved = "–" if match["movement"] is None else number(match["movement"]["size"], 2)
    figures = [match["neighbours"], match["forward"], match["backward"]]
    cells = "".join(f"{number(v, 2):>8}" for v in figures)
    return f"{_tail(name, 27):<28}{number(match['cka']) + error:>14}{cells}{moved:>9}"


def _tail(name: str, room: int) -> str:
    """Return the end of a name, which tells sites apart."""
    text = shown(name)
    return text if len(text) <= room else f"…{text[1 - room :]}"
