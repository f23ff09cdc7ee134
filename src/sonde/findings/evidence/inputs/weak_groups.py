"""Groups of sampled rows on which a classifier is worse, and their description."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.data.images import PICTURE_COLUMNS
from sonde.data.numbers import are_numbers, as_number
from sonde.findings.evidence.answers.answers import right_rows
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.inputs.unusual_rows import spread_sites
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import EXAMPLES, examples_at, ids_at, shared_rows
from sonde.findings.words.text import number, percent, shortened
from sonde.metrics import WeakGroup, weak_groups
from sonde.metrics._conditions import Nearest

SITES, LISTED, FEW = 6, 50, 12
OF_ROWS = ("length", "padding", "truncated", "size", *PICTURE_COLUMNS)
STANDS_OUT = 1.0


@dataclass(frozen=True, eq=False)
class WeakRows:
    """The labelled rows that were searched for groups, and the groups that were tested.

    Parameters
    ----------
    where : Int[Tensor, "row"]
        The shared rows that have a label.
    wrong : Float[Tensor, "row"]
        1 if the answer is not the label, else 0; for a regression, how far off it is; for a text,
        its nats per token.
    label, answer, group : Int[Tensor, "row"]
        Without classes, labels and answers are -1.
    columns : dict of str to values of each row
    groups : list of WeakGroup
        All groups that were measured on the second half, worse than the rest or not; the worst
        first. Their rows are indices into ``where``.
    """

    where: Int[Tensor, "row"]
    wrong: Float[Tensor, "row"]
    label: Int[Tensor, "row"]
    answer: Int[Tensor, "row"]
    group: Int[Tensor, "row"]
    columns: dict[str, Any]
    groups: list[WeakGroup]


@once
def weak_rows(evidence: Evidence) -> WeakRows | None:
    """Return the groups on which a classifier may be worse, or None if its answers are unknown."""
    right = right_rows(evidence)
    if right is None:
        return None
    shared = shared_rows(evidence)
    where = torch.nonzero(torch.isfinite(right)).flatten()
    logits, label = shared.column("logits"), shared.column("label")
    assert logits is not None  # right_rows has both
    assert label is not None
    answer, label = logits[where].argmax(1), label[where]
    wrong, group = 1 - right[where], shared.group[where]
    columns, states = known_columns(evidence, where), _states(evidence, where)
    groups = weak_groups(
        wrong,
        group,
        columns,
        states,
        label=label.tolist(),
        answer=answer.tolist(),
        gap=-math.inf,
    )
    return WeakRows(where, wrong, label, answer, group, columns, groups)


def weak_losses(
    evidence: Evidence, where: Int[Tensor, "row"], loss: Float[Tensor, "row"]
) -> WeakRows:
    """Return the groups of some shared rows whose loss may be larger, without classes."""
    group, columns = shared_rows(evidence).group[where], known_columns(evidence, where)
    groups = weak_groups(loss, group, columns, _states(evidence, where), gap=-math.inf)
    none = torch.full_like(where, -1)
    return WeakRows(where, loss, none, none, group, columns, groups)


def _states(evidence: Evidence, where: Int[Tensor, "row"]) -> dict[str, Tensor]:
    """Return rows at up to six sites, evenly spaced over the depth, by the sites' keys."""
    chosen = spread_sites(len(evidence.sites), SITES)
    return {evidence.sites[i].schema.key: shared_rows(evidence).x(i)[where] for i in chosen}


def known_columns(evidence: Evidence, where: Int[Tensor, "row"]) -> dict[str, Any]:
    """Return the known columns of the inputs: measured, given by the user, and file names."""
    shared = shared_rows(evidence)
    columns: dict[str, Any] = {}
    for name in OF_ROWS:
        values = shared.column(name)
        if values is not None:
            columns[name] = values.double().reshape(len(values), -1)[where, 0]
    if evidence.data.own_columns is not None and shared.order is not None:
        own = evidence.data.own_columns(shared.order[where].tolist())
        columns |= {name: _typed(values) for name, values in own.items()}
    if shared.order is not None:
        columns |= file_names(evidence, shared.order[where].tolist())
    return columns


def file_names(evidence: Evidence, examples: Sequence[int]) -> dict[str, list[str]]:
    """Return file names without their last number, if these form 2 to 12 groups."""
    place = evidence.data.place
    if not evidence.data.by_name or place is None:
        return {}
    starts = [re.sub(r"\d+$", "", PurePath(place(i)).stem) for i in examples]
    return {"file name": starts} if 1 < len(set(starts)) <= FEW else {}


def _typed(values: Sequence[Any]) -> Any:
    """Return a tensor if a column holds many different numbers (NaN if missing), else a list."""
    if len(set(values)) <= FEW or not are_numbers(values):
        return ["" if v is None else v for v in values]
    numbers = [as_number(v) for v in values]
    return torch.tensor([float("nan") if v is None else v for v in numbers], dtype=torch.float64)


def told(evidence: Evidence, found: WeakRows, group: WeakGroup) -> str:
    """Describe a group's conditions; for a cluster also the columns that differ most."""
    text = " and ".join(_condition(evidence, c) for c in group.conditions)
    if not any(isinstance(c, Nearest) for c in group.conditions):
        return text
    beside = standouts(found, group)
    return f"{text} ({'; '.join(beside[:2])})" if beside else text


def _condition(evidence: Evidence, condition: Any) -> str:
    if condition.kind in ("label", "answer"):
        return f"{condition.source} {class_name(evidence.data, int(condition.value))}"
    return shortened(condition.text.removesuffix(":out"), 60)


def standouts(found: WeakRows, group: WeakGroup) -> list[str]:
    """Return the columns in which the members differ most from the rest, most extreme first."""
    inside = torch.zeros(len(found.where), dtype=torch.bool)
    inside[group.rows] = True
    texts: list[tuple[float, str]] = []
    for name, values in found.columns.items():
        if isinstance(values, Tensor):
            own, rest = values[inside].nanmean(), values[~inside].nanmean()
            z = float((own - rest) / values[~values.isnan()].std().clamp(min=1e-12))
            if abs(z) >= STANDS_OUT:
                texts.append((abs(z), f"{name} {number(float(own))}, else {number(float(rest))}"))
            continue
        ((value, n),) = Counter(values[i] for i in group.rows.tolist()).most_common(1)
        here = n / len(group.rows)
        rest_share = (values.count(value) - n) / max(int((~inside).sum()), 1)
        if here >= 0.5 and here - rest_share >= 0.3:
            z = (here - rest_share) / max(rest_share * (1 - rest_share), 1e-3) ** 0.5
            text = f"{percent(here)} have {name} = {value}, else {percent(rest_share)}"
            texts.append((z, text))
    return [text for _, text in sorted(texts, key=lambda one: -one[0])]


def extreme_units(evidence: Evidence, found: WeakRows, group: WeakGroup) -> tuple[str, list[int]]:
    """Return the site whose units best separate a group's rows, and its best five units.

    A unit separates rows by the difference of the means of members and others, over its spread.
    """
    shared, best = shared_rows(evidence), ("", [], 0.0)
    named = [c.source for c in group.conditions if isinstance(c, Nearest)]
    inside = torch.zeros(len(found.where), dtype=torch.bool)
    inside[group.rows] = True
    for i in spread_sites(len(evidence.sites), SITES):
        key = evidence.sites[i].schema.key
        if named and key not in named:
            continue
        x = shared.x(i)[found.where]
        z = ((x[inside].mean(0) - x[~inside].mean(0)) / x.std(0)).nan_to_num(0, 0, 0).abs()
        if float(z.max()) > best[2]:
            best = key, z.argsort(descending=True)[:5].tolist(), float(z.max())
    return best[0], best[1]


def worst_pairs(
    evidence: Evidence, found: WeakRows, group: WeakGroup
) -> list[tuple[str, str, int]]:
    """Return the most frequent wrong answers of the members: label, answer, rows."""
    rows = [i for i in group.rows.tolist() if found.wrong[i] > 0]
    counted = Counter((int(found.label[i]), int(found.answer[i])) for i in rows)
    names = evidence.data
    return [(class_name(names, a), class_name(names, b), n) for (a, b), n in counted.most_common(3)]


def members(evidence: Evidence, found: WeakRows, group: WeakGroup) -> list[int]:
    """Return a group's shared rows: the wrong rows, then the correct ones.

    Each part starts with the rows nearest to the members' mean state at the last site.
    """
    x = shared_rows(evidence).x(len(evidence.sites) - 1)[found.where][group.rows]
    distance = (x - x.mean(0)).norm(dim=1)
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(found.wrong[group.rows][order], descending=True, stable=True)]
    return found.where[group.rows[order]].tolist()


def weak_table(
    evidence: Evidence, found: WeakRows, groups: Sequence[WeakGroup]
) -> list[dict[str, Any]]:
    """Return groups for a report: conditions, accuracy inside and elsewhere, members."""
    return [_entry(evidence, found, group) for group in groups]


def _entry(evidence: Evidence, found: WeakRows, group: WeakGroup) -> dict[str, Any]:
    rows = members(evidence, found, group)
    return {
        "told": told(evidence, found, group),
        "n": len(rows),
        "accuracy": 1 - group.loss,
        "low": 1 - group.high,
        "high": 1 - group.low,
        "elsewhere": 1 - group.elsewhere,
        "confused": [f"{a} as {b}" for a, b, _ in worst_pairs(evidence, found, group)],
        "ids": ids_at(evidence, rows[:LISTED]),
        EXAMPLES: examples_at(evidence, rows[:LISTED]),
    }
