"""Two models on the same inputs."""

from typing import Any, Final

from sonde.core.wording import plural
from sonde.report._format import number, share, shown
from sonde.report._picture import Numbers
from sonde.report._pictures_compare import alike_picture, map_picture, moved_picture
from sonde.report.document import Document, Finding, Section, Table, figures

FOUND_AGAIN: Final = 0.7
PARTED: Final = 0.9
"""Layers of one name that are less alike than this are said to have parted."""
_MEANINGS: Final = {
    "CKA": "debiased, with its standard error: 1 is the same geometry, 0 nothing in common",
    "near": "share of common nearest neighbours",
    "A->B": "variance of the second model's layer that a linear map of the first's explains, "
    "beyond chance",
    "B->A": "the other way round",
    "moved": "change of a state in its own spreads (layers of the same name and width)",
}


def document(found: dict[str, Any]) -> Document:
    """Return what a comparison says: whether two models answer alike, and where layers part.

    Parameters
    ----------
    found : dict
        JSON of a comparison, ``sonde-compare/1``.
    """
    both = found["answers"]
    facts = [
        ("first", shown(found["first"], 120)),
        ("second", shown(found["second"], 120)),
        ("data", shown(found["data"], 120)),
        ("rows", _rows_sentence(found)),
    ]
    if both is not None:
        facts.append(("same answer", f"{share(both['same'])} of {plural(both['n'], 'example')}"))
        if both["loss"][0] is not None:
            right = " and ".join(share(v) for v in both["right"])
            loss = " and ".join(f"{number(v)} nats" for v in both["loss"])
            facts += [("right, first and second", right), ("loss, first and second", loss)]
    said = [Finding(f["level"], f["code"], shown(f["sentence"], 240))
            for f in found.get("findings", [])]  # fmt: skip
    alike, moved = alike_picture(found), moved_picture(found)
    return Document(
        "compare",
        "Two models on the same inputs",
        _verdict(found),
        facts,
        [
            Section("findings", "Findings", said),
            Section("map", "Layer by layer", [*figures(map_picture(found), where="page"),
                                              _layers(found)]),
            Section("alike", "Along the depth", figures(alike), where="page") if alike else None,
            Section("moved", "What moved", figures(moved), where="page") if moved else None,
            _units(found),
        ],
        subject=f"{shown(found['first'], 60)} and {shown(found['second'], 60)}",
    )  # fmt: skip


def _verdict(found: dict[str, Any]) -> str:
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
    if both is None and named:
        said.append(_stayed(named[-1]))
    return " ".join(part for part in said if part)


def _stayed(last: dict[str, Any]) -> str:
    """Return how many neighbours of a row stay at the last common layer, where search happens.

    Models without answers, such as those of embeddings, are used by their nearest rows.

    Examples
    --------
    >>> _stayed({"site": "normalize:out", "neighbours": 0.62, "neighbours_null": 0.03})
    'Of the nearest rows of a row at normalize, 62 % stay among the nearest (by chance 3 %).'
    """
    stay, chance = last.get("neighbours"), last.get("neighbours_null")
    if stay is None or chance is None:
        return ""
    return (
        f"Of the nearest rows of a row at {shown(last['site'].removesuffix(':out'), 40)}, "
        f"{share(stay)} stay among the nearest (by chance {share(chance)})."
    )


def _rows_sentence(found: dict[str, Any]) -> str:
    """Return the number of rows that the figures are based on."""
    text = f"From {plural(found['n_rows'], 'row')} that both models have"
    text += ", one of each group in CKA" if found["grouped"] else ""
    missing = found["n_missing"]
    return f"{text}; {plural(missing, 'row')} of one alone left out." if missing else f"{text}."


def _layers(found: dict[str, Any]) -> Table:
    """Return the figures of each layer beside its partner."""
    columns = ("site", "partner", "CKA", "se", "near", "A->B", "B->A", "moved")
    rows = tuple(
        (
            m["site"],
            None if m["site"] == m["other"] else m["other"],
            m["cka"],
            m["cka_se"],
            m["neighbours"],
            m["forward"],
            m["backward"],
            None if m["movement"] is None else m["movement"]["size"],
        )
        for m in found["matches"]
    )
    brief = columns if any(row[1] for row in rows) else (columns[0], *columns[2:])
    return Table(Numbers(columns, rows, "layers"), "Layers", folded=len(rows) > 24,
                 kinds={"partner": "site"}, meanings=_MEANINGS, brief=brief, most=24)  # fmt: skip


def _units(found: dict[str, Any]) -> Section:
    columns = ("site", "partner", "units found again", "Procrustes distance", "flags")
    rows = tuple(
        (m["site"], m["other"], m["found_again"], m["distance"], ", ".join(m["flags"]) or None)
        for m in found["matches"]
    )
    lead = f"Share of the first model's units that correlate by at least {FOUND_AGAIN} with a unit "
    lead += "of the second: near 1 where training found the same units, low where it found the "
    lead += "same space by others. The distance is that after the best rotation, in [0, 2]."
    made = Table(Numbers(columns, rows, "units"), "Sites", folded=len(rows) > 24)
    return Section("units", "Units found again", [made], lead, where="verbose")
