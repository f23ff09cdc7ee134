"""Closed-form linear classifiers: class means in the metric of a shrunk shared covariance."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.stats.class_moments import ClassMoments, ClassMomentsState
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


def class_scores(
    fitted: ClassMomentsState, x: Float[Tensor, "row dim"]
) -> Float[Tensor, "row class"]:
    """Return ``x . S^-1 m_k - m_k . S^-1 m_k / 2``: higher = nearer, with equal class priors.

    With the logarithm of the classes' shares added, the rule makes the fewest errors if classes
    are normal with a shared covariance.
    """
    centre = fitted.grand_mean
    mean = fitted.mean - centre
    direction = metric_times(fitted.pooled, fitted.n_labelled, mean.T)
    return (x - centre) @ direction - (mean * direction.T).sum(1) / 2


def fitted_on(x: Float[Tensor, "row dim"], label: Tensor, wide: bool = False) -> ClassMomentsState:
    """Return the class moments of these rows; if ``wide``, only their diagonal."""
    return ClassMoments("diag" if wide else "pooled").observe(x.double(), label)
