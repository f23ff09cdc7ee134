"""The linear classifier of states: class means in the metric of a shrunk shared covariance.

Closed-form, from moments, so it is exact under any split of the rows. Scans, ``explain.Probe``,
``explain.ControlTask`` and ``sonde labels`` all fit this classifier, on the folds of ``folds``.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.stats.class_moments import ClassMoments, ClassMomentsState
from sonde.stats.folds import FOLDS, folds_of
from sonde.stats.shrinkage import inverse_root, shrunk


def metric_times(
    scatter: Float[Tensor, "dim dim"] | Float[Tensor, "dim"],
    n: int,
    vectors: Float[Tensor, "dim vector"],
) -> Float[Tensor, "dim vector"]:
    """Return ``S^-1 v`` for the shrunk covariance ``S`` of ``n`` rows with this scatter.

    Solved by Cholesky. If rounding leaves ``S`` without a Cholesky factor, solved on the
    directions that have data.
    """
    if scatter.ndim == 2 and bool(scatter.diagonal().sum() > 0):
        covariance, _ = shrunk(scatter / n, n, "oas")
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not bool(failed):
            return torch.cholesky_solve(vectors, factor)
    root = inverse_root(scatter, n).root
    return (root.square()[:, None] * vectors) if root.ndim == 1 else root @ (root.T @ vectors)


def without(all_rows: ClassMomentsState, some: ClassMomentsState) -> ClassMomentsState:
    """Return the class moments of all rows minus those of some rows, the inverse of ``merge``.

    Classes without a remaining row are dropped.
    """
    at = torch.searchsorted(all_rows.labels, some.labels)
    taken = torch.zeros_like(all_rows.weight).index_copy(0, at, some.weight)
    weight = all_rows.weight - taken
    kept = weight > 0.5
    mean = all_rows.mean.clone()
    gone, left = some.weight, weight[at]
    shift = (mean[at] - some.mean) * (gone / left.clamp(min=1.0))[:, None]
    mean[at] += shift
    gap, share = some.mean - mean[at], gone * left / (gone + left)
    within = all_rows.within - some.within
    if all_rows.scatter == "pooled":
        within = within - (gap * share[:, None]).T @ gap
    else:
        within = within.index_add(0, at, -gap.square() * share[:, None])[kept]
    return ClassMomentsState(
        all_rows.labels[kept], weight[kept], mean[kept], within, all_rows.scatter
    )


def directions(
    fitted: ClassMomentsState,
) -> tuple[Float[Tensor, "dim class"], Float[Tensor, "class"]]:
    """Return the direction and bias of each class, for rows from which the grand mean is taken."""
    mean = fitted.mean - fitted.grand_mean
    direction = metric_times(fitted.pooled, fitted.n_labelled, mean.T)
    return direction, -(mean * direction.T).sum(1) / 2


def class_scores(
    fitted: ClassMomentsState, x: Float[Tensor, "row dim"]
) -> Float[Tensor, "row class"]:
    """Return ``x . S^-1 m_k - m_k . S^-1 m_k / 2``: higher = nearer, with equal class priors.

    With the logarithm of the classes' shares added, the rule makes the fewest errors if classes
    are normal with a shared covariance.
    """
    direction, bias = directions(fitted)
    return (x - fitted.grand_mean) @ direction + bias


def fitted_on(x: Float[Tensor, "row dim"], label: Tensor, wide: bool = False) -> ClassMomentsState:
    """Return the class moments of these rows; if ``wide``, only their diagonal."""
    return ClassMoments("diag" if wide else "pooled").observe(x.double(), label)


def held_out_scores(
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    group: Int[Tensor, "row"],
    classes: Int[Tensor, "class"],
    *,
    every: ClassMomentsState | None = None,
    wide: bool = False,
    folds: int = FOLDS,
) -> tuple[Float[Tensor, "row class"], Float[Tensor, "row class"]]:
    """Return class scores from classifiers fitted without each row's fold, and log frequencies.

    The sum of both predicts the class; the scores alone count all classes alike.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows, in float64.
    label : Int[Tensor, "row"]
        Class of each row; a negative one is no label.
    group : Int[Tensor, "row"]
        Hash of each row's group.
    classes : Int[Tensor, "class"]
        Classes to score, ascending. A class without rows in the fit scores minus infinity.
    every : ClassMomentsState, optional
        Moments of all labelled rows, also those outside ``x``: the fit is then on all rows outside
        the fold. Right only if no row outside ``x`` is of a group of ``x``.
    wide : bool, default=False
        Fit the diagonal of the covariance only.
    folds : int, default=4
        Number of folds.
    """
    scores = torch.full((len(x), len(classes)), -math.inf, dtype=torch.float64, device=x.device)
    odds, fold = torch.full_like(scores, -math.inf), folds_of(group, folds)
    for f in torch.unique(fold).tolist():
        held = fold == f
        fitted = _without_fold(x, label, held, every, wide)
        seen = torch.nonzero(torch.isin(fitted.labels, classes)).flatten()
        if not len(seen):
            continue
        at = torch.searchsorted(classes, fitted.labels[seen])
        rows = torch.nonzero(held).flatten()
        scores[rows[:, None], at] = class_scores(fitted, x[rows])[:, seen]
        odds[rows[:, None], at] = (fitted.weight[seen] / fitted.weight[seen].sum()).log()
    return scores, odds


def _without_fold(
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    held: Tensor,
    every: ClassMomentsState | None,
    wide: bool,
) -> ClassMomentsState:
    """Return the class moments of the labelled rows outside a fold."""
    rows = (held if every is not None else ~held) & (label >= 0)
    if every is None:
        return fitted_on(x[rows], label[rows], wide)
    return without(every, fitted_on(x[rows], label[rows], wide)) if bool(rows.any()) else every
