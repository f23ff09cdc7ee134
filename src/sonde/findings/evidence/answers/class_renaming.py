"""Test whether a classifier's answers are correct once its classes are renamed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from sonde.findings.evidence.answers.answers import ClassAnswers
from sonde.findings.evidence.shared_rows import one_per_group

TEMPERATURES: Final = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
LINKED: Final = 0.05
Confusion = Int[Tensor, "label answer"]


@dataclass(frozen=True)
class Renaming:
    """Classes whose rows the model assigns to another class, one-to-one.

    Parameters
    ----------
    answer_for : mapping of int to int
        For the label of each such class, what the model calls it.
    p : float
        Chance of the counts if each class gets this name no more often than any other name,
        corrected for the number of renamings that were tried.
    """

    answer_for: Mapping[int, int]
    p: float

    def renamed(self, found: ClassAnswers) -> Int[Tensor, "row"]:
        """Return each row's label by the model's name."""
        called = torch.arange(max(found.n_classes, int(found.truth.max()) + 1))
        for label, answer in self.answer_for.items():
            called[label] = answer
        return called[found.truth]

    def gain(self, found: ClassAnswers) -> float:
        """Return how far the log loss after renaming is below the entropy of the labels.

        As a share of the entropy of the labels, at the best temperature, for a model may be too
        sure: 1 = always right, 0 = no better than an answer that ignores the input, as an untrained
        model is.
        """
        names = self.renamed(found)
        is_known = names < found.n_classes
        logs = found.probability.double().clamp(min=1e-12).log()
        losses = []
        for temperature in TEMPERATURES:
            log_p = torch.log_softmax(logs / temperature, 1)
            own = log_p.gather(1, names.clamp(max=found.n_classes - 1)[:, None])[:, 0]
            losses.append(-float(torch.where(is_known, own, math.log(1e-12)).mean()))
        counts = torch.unique(names, return_counts=True)[1].double()
        entropy = float(torch.special.entr(counts / counts.sum()).sum())
        return 1 - min(losses) / entropy if entropy > 0 else -math.inf


def renaming(found: ClassAnswers, level: float) -> Renaming | None:
    """Return the classes whose names are significantly exchanged, or None.

    Exchanges are found on one half of the groups and tested on the other. Labels that pass names on
    in a circle are tested together, by their weaker half. In an exchange of two labels, the answers
    must give each label the other's name more often than any other name, its own included. If all
    circles together pass the level, 5 % is enough for each of them. A single
    class that is mistaken for another is an ordinary confusion and never counts, nor does a chain
    that ends in a class without rows.
    """
    rows = one_per_group(found.group)
    first = torch.remainder(found.group[rows], 2) == 0
    halves = (rows[first], rows[~first])
    if min(len(half) for half in halves) == 0:
        return None
    seen = torch.unique(found.truth)
    fitted, tested = (_confusion(found, half, seen) for half in halves)
    called = _assigned(fitted, seen)
    moved = {y: a for y, a in called.items() if y != a}
    parts = _linked(moved, len(called))
    circles = [{y: moved[y] for y in part} for part in parts]
    if not circles:
        return None
    together = _chance(tested, seen, {y: a for part in circles for y, a in part.items()})
    least = max(level, LINKED) if together < level else level
    kept: dict[int, int] = {}
    p = 0.0
    for part in circles:
        chance = min(1.0, len(parts) * _chance(tested, seen, part))
        if chance < least:
            kept |= part
            p = max(p, min(chance, together) if chance >= level else chance)
    return Renaming(dict(sorted(kept.items())), p) if kept else None


def _confusion(
    found: ClassAnswers, rows: Int[Tensor, "_row"], seen: Int[Tensor, "_class"]
) -> Confusion:
    label, k = torch.searchsorted(seen, found.truth[rows]), max(found.n_classes, int(seen[-1]) + 1)
    flat = torch.bincount(label * k + found.answer[rows], minlength=len(seen) * k)
    return flat.reshape(len(seen), k)


def _assigned(table: Confusion, seen: Int[Tensor, "_class"]) -> dict[int, int]:
    """Return the one-to-one renaming with the most correct answers; ties keep their name."""
    weight = table.double()
    weight[torch.arange(len(seen)), seen] += 0.5
    labels, answers = linear_sum_assignment(weight.numpy(), maximize=True)
    return {int(seen[y]): int(a) for y, a in zip(labels, answers, strict=True)}


def _linked(moved: Mapping[int, int], n_seen: int) -> list[list[int]]:
    """Return the cycles of the label permutation; one cycle of all labels if every label moved."""
    if moved and len(moved) == n_seen and (n_seen > 2 or set(moved) & set(moved.values())):
        return [list(moved)]
    parts, left = [], set(moved)
    while left:
        start = left.pop()
        part = [start]
        at = moved[start]
        while at in left:
            part.append(at)
            left.remove(at)
            at = moved[at]
        if at == start:  # only a closed circle: a chain ends in a class that has no rows here
            parts.append(part)
    return parts


def _chance(table: Confusion, seen: Int[Tensor, "_class"], moved: Mapping[int, int]) -> float:
    """Return the binomial p-value of the weaker half of these classes' counts."""
    counts = []
    for label, answer in moved.items():
        row = table[int(torch.searchsorted(seen, label))]
        others = row.clone()
        others[answer] = 0
        counts.append((int(row[answer]), int(others.max())))
    counts.sort(key=lambda pair: pair[0] - pair[1])
    weaker = counts[: (len(counts) + 1) // 2]
    named, rival = (sum(column) for column in zip(*weaker, strict=True))
    return float(binom.sf(named - 1, named + rival, 0.5)) if named else 1.0
