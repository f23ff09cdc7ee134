"""The document of a comparison of two models on the same inputs."""

import math
from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, curves, matrix
from sonde.core.wording import plural
from sonde.report._fit import NARROW, WIDE, Rows, tip
from sonde.report._format import number, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.document import Document, Finding, Section, Table, figures

_MOST: Final = {WIDE: 48, NARROW: 24}


SIGNIFICANT: Final = 0.05
FOUND_AGAIN: Final = 0.7
PARTED: Final = 0.9
"""CKA below which layers of the same name count as diverged."""
_MEANINGS: Final = {
    "CKA": "debiased, with its standard error: 1 is the same geometry, 0 is unrelated geometry",
    "near": "fraction of nearest neighbours in common",
    "A->B": "variance of the second model's layer that a linear map of the first model's layer "
    "explains, above chance",
    "B->A": "the same with the two models exchanged",
    "moved": "root mean square length of the rows' changes, divided by the root mean square, over "
    "these rows, of the standard deviation of the first model's rows along each row's change. Rows "
    "that did not change are left out (only layers with the same name and width)",
}


def document(found: dict[str, Any]) -> Document:
    """Return a comparison as a document: equal answers, and layers that differ.

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
            facts += [("accuracy, first and second", right), ("loss, first and second", loss)]
    findings = [Finding(f["level"], f["code"], shown(f["sentence"], 240))
            for f in found.get("findings", [])]  # fmt: skip
    alike, moved = alike_picture(found), moved_picture(found)
    return Document(
        "compare",
        "Two models on the same inputs",
        _verdict(found),
        facts,
        [
            _answers_section(found),
            _tensors_section(found),
            Section("findings", "Findings", findings),
            Section("map", "Layer by layer", [*figures(map_picture(found), where="page"),
                                              _layers(found)]),
            Section("alike", "Along the depth", figures(alike), where="page") if alike else None,
            Section("moved", "What moved", figures(moved), where="page") if moved else None,
            _units(found),
        ],
        subject=f"{shown(found['first'], 60)} and {shown(found['second'], 60)}",
    )  # fmt: skip


def _verdict(found: dict[str, Any]) -> str:
    sentences: list[str] = []
    both = found["answers"]
    if both is not None:
        sentences.append(_paired(both))
        text = f"Identical answers to {share(both['same'])}"
        sentences.append(f"{text} ({number(both['divergence'])} nats apart).")
    numbers = found.get("numbers")
    if numbers is not None:
        sentences.append(_of_numbers(numbers))
    differ = (both is not None and both["same"] < 1) or (
        numbers is not None and numbers["same"] < 1
    )
    measured = [m for m in found["matches"] if m["cka"] is not None]
    if not measured:
        return " ".join([*sentences, "No layer has enough variance to be compared."])
    named = [m for m in measured if m["site"] == m["other"]]
    if not named:
        best = max(measured, key=lambda m: m["cka"])
        pair = f"{shown(best['site'], 40)} and {shown(best['other'], 40)}"
        sentences.append(
            f"No layers have the same name; the most similar layers are {pair} (CKA "
            f"{number(best['cka'])})."
        )
    elif all(m["movement"] is not None and m["movement"]["size"] == 0.0 for m in named):
        sentences.append(
            "Every state is the same: the answers differ after the last layer compared."
            if differ
            else "Every state is the same."
        )
    else:
        parted = next((m for m in named if m["cka"] < PARTED), None)
        least = min(named, key=lambda m: m["cka"])
        if parted is None:
            sentences.append(
                "Layers of the same name stay similar: the least similar, "
                f"{shown(least['site'], 40)}, has CKA "
                f"{number(least['cka'])}."
            )
        else:
            sentences.append(
                f"Layers of the same name diverge at {shown(parted['site'], 40)} (CKA "
                f"{number(parted['cka'])}), most at {shown(least['site'], 40)} "
                f"({number(least['cka'])})."
            )
    if both is None and named:
        sentences.append(_stayed(named[-1]))
    return " ".join(part for part in sentences if part)


def _paired(both: dict[str, Any] | None) -> str:
    """Describe the change of accuracy, or of loss if accuracy is equal, with its p-value.

    Examples
    --------
    >>> change = {"n": 200, "value": -0.44, "se": 0.04, "p": 1e-20}
    >>> _paired({"right": (0.9, 0.46), "loss": (0.3, 2.0), "accuracy_change": change})
    'The second model loses 44 points of accuracy: 46 % instead of 90 % (p = 1e-20, 200 examples).'
    >>> change = {"n": 200, "value": 0.25, "se": 0.04, "p": 4e-10}
    >>> _paired({"loss": (0.25, 0.5), "loss_change": change})
    'The loss of the second model is 0.25 nats higher: 0.5 instead of 0.25 (p = 4e-10, 200 examples).'
    """  # noqa: E501
    if both is None:
        return ""
    for name, values in (("accuracy_change", "right"), ("loss_change", "loss")):
        change = both.get(name)
        if change is None or change["p"] is None or change["p"] > SIGNIFICANT:
            continue
        one, two = both[values]
        counted = f"p = {number(change['p'], 1)}, {plural(change['n'], 'example')}"
        rises, size = change["value"] > 0, abs(change["value"])
        if name == "accuracy_change":
            words = (
                f"The second model {'gains' if rises else 'loses'} {number(100 * size, 2)} points"
            )
            return f"{words} of accuracy: {share(two)} instead of {share(one)} ({counted})."
        word = "higher" if rises else "lower"
        words = f"The loss of the second model is {number(size, 2)} nats {word}"
        return f"{words}: {number(two)} instead of {number(one)} ({counted})."
    return ""


def _answers_section(found: dict[str, Any]) -> Section | None:
    """Return the accuracy of both models by class, the classes that lost most first."""
    both = found["answers"]
    classes = [] if both is None else both.get("classes") or []
    if len(classes) < 2 or not any(c["right"][0] != c["right"][1] for c in classes):
        return None
    columns = ("class", "n", "first", "second", "p")
    rows = tuple((c["name"], c["n"], *c["right"], c["p"]) for c in classes)
    meanings = {
        "n": "examples of the class",
        "first": "accuracy of the first model",
        "second": "accuracy of the second model",
        "p": "one-sided sign test that the class lost, multiplied by the number of classes",
    }
    lost = [c for c in classes if c["p"] <= SIGNIFICANT and c["right"][1] < c["right"][0]]
    lead = f"{len(lost)} of {plural(len(classes), 'class', 'classes')} lost accuracy significantly."
    kinds = {"first": "share", "second": "share", "p": "p"}
    table = Table(
        Numbers(columns, rows, "classes"), "Classes", kinds=kinds, meanings=meanings, most=8
    )
    return Section("classes", "Accuracy by class", [table], lead)


def _tensors_section(found: dict[str, Any]) -> Section | None:
    """Return the tensors that changed, the largest change first."""
    difference = found.get("difference") or {}
    changes = difference.get("changes") or []
    if not changes:
        return None
    rows = tuple((name, size) for name, size in changes)
    lead = f"{len(difference['weights'])} of {plural(difference['n_weights'], 'tensor')} differ."
    meanings = {"change": "length of the change, divided by the length of the first tensor"}
    table = Table(Numbers(("tensor", "change"), rows, "tensors"), "Tensors that changed",
                 meanings=meanings, folded=len(rows) > 24, most=8)  # fmt: skip
    return Section("tensors", "Tensors that changed", [table], lead)


def _of_numbers(found: dict[str, Any]) -> str:
    """Describe how the numbers of two regressions differ.

    Examples
    --------
    >>> _of_numbers({"n": 90, "same": 0.0, "difference": 0.65, "r2": (0.978, 0.556)})
    'R^2 is 0.98 for the first model and 0.56 for the second; the answers differ by 0.65 standard deviations.'
    """  # noqa: E501
    if found["same"] == 1:
        words = "the answers are equal"
    else:
        words = f"the answers differ by {number(found['difference'], 2)} standard deviations"
    one, two = found["r2"]
    if one is None or two is None or one != one or two != two:
        return f"{words[:1].upper()}{words[1:]}."
    return (
        f"R^2 is {number(one, 2)} for the first model and {number(two, 2)} for the second; {words}."
    )


def _stayed(last: dict[str, Any]) -> str:
    """Return how many nearest neighbours of a row are the same in both models.

    Models without answers, such as those of embeddings, are used by their nearest rows.

    Examples
    --------
    >>> _stayed({"site": "normalize:out", "neighbours": 0.62, "neighbours_null": 0.03})
    'Of the nearest rows of a row at normalize, 62 % stay among the nearest (expected by chance: 3 %).'
    """  # noqa: E501
    stay, chance = last.get("neighbours"), last.get("neighbours_null")
    if stay is None or chance is None:
        return ""
    return (
        f"Of the nearest rows of a row at {shown(last['site'].removesuffix(':out'), 40)}, "
        f"{share(stay)} stay among the nearest (expected by chance: {share(chance)})."
    )


def _rows_sentence(found: dict[str, Any]) -> str:
    """Return the number of rows behind the numbers."""
    text = f"From {plural(found['n_rows'], 'row')} that both models have"
    text += ", one of each group in CKA" if found["grouped"] else ""
    missing = found["n_missing"]
    return (
        f"{text}; {plural(missing, 'row')} that only one model has are left out."
        if missing
        else f"{text}."
    )


def _layers(found: dict[str, Any]) -> Table:
    """Return the statistics of each layer and its partner."""
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
    columns = ("site", "partner", "matched units", "Procrustes distance", "flags")
    rows = tuple(
        (m["site"], m["other"], m["found_again"], m["distance"], ", ".join(m["flags"]) or None)
        for m in found["matches"]
    )
    lead = (
        f"Fraction of the first model's units that correlate by at least {FOUND_AGAIN} with a "
        "unit of the second: near 1 if both training runs learned the same units, low if they "
        "learned the same space with other units. Procrustes distance: in [0, 2], after the "
        "best rotation."
    )
    table = Table(Numbers(columns, rows, "units"), "Sites", folded=len(rows) > 24)
    return Section("units", "Matched units", [table], lead, where="verbose")


def map_picture(found: dict[str, Any]) -> Picture:
    """Return the similarity matrix between the layers of both models."""
    sites, others = found["sites"], found["others"]

    message = _map_message(found)

    def draw(width: int) -> Chart:
        across, up = Axis.of(sites, _MOST[width]), Axis.of(others, _MOST[width])
        cells = _cells(found, across, up)
        return matrix(message, cells, across.across("a"), up.upward("b"), "CKA", low=0, high=1)

    rows = tuple((a, *found["cka"][i]) for i, a in enumerate(sites))
    numbers = Numbers(("first \\ second", *others), rows, "cka")
    note = (
        "Debiased CKA: 1 is the same geometry, 0 is unrelated geometry. Horizontal: the first "
        "model; vertical: the second. A bright diagonal: layers of the same name have similar "
        "states."
    )
    return Picture("map", message, draw, numbers, note, square=True)


def _map_message(found: dict[str, Any]) -> str:
    sites, others = found["sites"], found["others"]
    at = {name: j for j, name in enumerate(others)}
    best = [
        max(range(len(others)), key=lambda j: -math.inf if row[j] is None else row[j])
        for row in found["cka"]
    ]
    named = [i for i, s in enumerate(sites) if s in at]
    if not named:
        return "Similarity of the layers of the two models"
    own = sum(best[i] == at[sites[i]] for i in named)
    return f"{own} of {len(named)} layers are most similar to the layer of the same name"


def _cells(found: dict[str, Any], across: Axis, up: Axis) -> Rows:
    at = {name: i for i, name in enumerate(found["sites"])}
    to = {name: j for j, name in enumerate(found["others"])}
    return [
        {
            "a": across.names[a],
            "b": up.names[b],
            "CKA": found["cka"][at[a]][to[b]],
            "tip": tip(a, b, f"CKA {number(found['cka'][at[a]][to[b]])}"),
        }
        for a in across.sites
        for b in up.sites
    ]


def alike_picture(found: dict[str, Any]) -> Picture | None:
    """Return the similarity of each layer to its partner, by depth of the first model."""
    measured = [m for m in found["matches"] if m["cka"] is not None]
    if len(measured) < 2:
        return None
    axis = Axis.of([m["site"] for m in measured])
    rows = [_point(m, axis) for m in measured if m["site"] in axis.names]
    columns = ("site", "partner", "CKA", "error", "neighbours", "A explains B", "B explains A")
    table = tuple(
        (m["site"], m["other"], m["cka"], m["cka_se"], m["neighbours"], m["forward"], m["backward"])
        for m in found["matches"]
    )

    def draw(width: int) -> Chart:
        y = ChartAxis("v", title="", low=min(0.0, *(r["lo"] for r in rows)), high=1.0)
        return curves(message, rows, axis.across(), y, bands=[("lo", "hi")])

    note = (
        "Debiased CKA with its 95 % interval. The partner of a layer is the layer of the same "
        "name, or else the most similar layer."
    )
    least = min(measured, key=lambda m: m["cka"])
    message = (
        f"Least similar to its partner: {axis.say(least['site'])} (CKA {number(least['cka'])})"
    )
    return Picture("alike", message, draw, Numbers(columns, table, "matches"), note)


def _point(match: dict[str, Any], axis: Axis) -> dict[str, Any]:
    v, error = match["cka"], 1.96 * (match["cka_se"] or 0.0)
    text = tip(match["site"], match["other"], f"CKA {number(v)}")
    return {"s": axis.names[match["site"]], "v": v, "lo": v - error, "hi": v + error, "tip": text}


def moved_picture(found: dict[str, Any]) -> Picture | None:
    """Return the change of states at sites with the same name, by depth."""
    moved = [m for m in found["matches"] if m["movement"] is not None]
    if len(moved) < 2:
        return None
    axis = Axis.of([m["site"] for m in moved])
    rows: Rows = [
        {
            "s": axis.names[m["site"]],
            "v": m["movement"]["size"],
            "tip": tip(
                m["site"], f"changed by {number(m['movement']['size'])} standard deviations"
            ),
        }
        for m in moved
        if m["site"] in axis.names
    ]
    most = max(moved, key=lambda m: m["movement"]["size"])
    message = f"States changed most at {axis.say(most['site'])}: "
    message += f"{number(most['movement']['size'])} of their own standard deviations"

    def draw(width: int) -> Chart:
        return curves(message, rows, axis.across(), ChartAxis("v", title="", zero=True))

    columns = ("site", "moved", "in common", "strongest direction", "units that changed most")
    table = tuple(
        (
            m["site"],
            m["movement"]["size"],
            m["movement"]["common"],
            m["movement"]["direction"],
            ", ".join(f"{u} ({number(v, 2)})" for u, v in m["movement"]["units"]) or None,
        )
        for m in moved
    )
    note = f"Moved: {_MEANINGS['moved']}. "
    note += "In common: fraction of the change that is equal for all rows."
    return Picture("moved", message, draw, Numbers(columns, table, "moved"), note)
