"""Class scores for each row, from a classifier fitted without the row's fold."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.findings.evidence.answers.linear_classifiers import class_scores, fitted_on, without
from sonde.findings.evidence.record import SiteEvidence
from sonde.stats.class_moments import ClassMomentsState

FOLDS = 4


def held_out_scores(
    site: SiteEvidence,
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    group: Int[Tensor, "row"],
    numbers: Int[Tensor, "class"],
    whole: bool,
) -> tuple[Float[Tensor, "row class"], Float[Tensor, "row class"]]:
    """Return class scores, fitted without each row's fold, and log class frequencies.

    A fold is a quarter of the groups by hash. With ``whole``, the fit uses all rows outside the
    fold, also rows outside the sample; this is right only if none of these is of a held-out group.
    """
    scores = torch.full((len(x), len(numbers)), -math.inf, dtype=torch.float64)
    odds = torch.zeros_like(scores)
    fold = torch.remainder(group, FOLDS)
    for f in range(FOLDS):
        held = fold == f
        if not bool(held.any()):
            continue
        fitted = _fit(site, x, label, held, whole)
        seen = torch.nonzero(torch.isin(fitted.labels, numbers)).flatten()
        at = torch.searchsorted(numbers, fitted.labels[seen])
        rows = torch.nonzero(held).flatten()
        scores[rows[:, None], at] = class_scores(fitted, x[rows])[:, seen]
        odds[rows[:, None], at] = (fitted.weight[seen] / fitted.weight[seen].sum()).log()
    return scores, odds


def _fit(
    site: SiteEvidence,
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    held: Tensor,
    whole: bool,
) -> ClassMomentsState:
    wide = site.is_wide
    labelled = label >= 0
    if whole and site.classes is not None:
        of_side = held & labelled
        if not bool(of_side.any()):
            return site.classes
        return without(site.classes, fitted_on(x[of_side], label[of_side], wide))
    rest = ~held & labelled
    return fitted_on(x[rest], label[rest], wide)


def eta_squared(classes: ClassMomentsState) -> float:
    """Return the fraction of the variance of labelled rows that lies between classes."""
    within = classes.pooled
    inside = float(within.sum() if within.ndim == 1 else within.diagonal().sum())
    between = float((classes.weight[:, None] * (classes.mean - classes.grand_mean).square()).sum())
    return between / (between + inside) if between + inside > 0 else 0.0
