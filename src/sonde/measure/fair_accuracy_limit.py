"""Best accuracy of a predictor that is nearly independent of an attribute."""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.result import Direction, Result
from sonde.measure.disparity_decomposition import triple_counts


@final
@dataclass(frozen=True, kw_only=True)
class FairAccuracyLimitResult(Result):
    """Best accuracy under the fairness limits.

    ``rule`` is a predictor that reaches it: the probability of each prediction, given attribute,
    client and label.
    """

    direction: Direction = "higher"
    rule: Float[Tensor, "attribute client label prediction"]


def fair_accuracy_limit(
    attribute: Any,
    client: Any,
    label: Any,
    *,
    overall: float | None = None,
    local: float | None = None,
) -> FairAccuracyLimitResult:
    """Return the best accuracy of a predictor that is fair overall, inside clients, or both.

    The predictor may know attribute, client and label. It is fair to ``eps`` if the share of each
    prediction differs by at most ``eps`` between any two values of the attribute. Solved as a
    linear programme.

    Range        [0, 1]; 1 = fairness costs nothing.
    Cost         a linear programme of ``attributes * clients * labels^2`` unknowns.
    Assumes      the rows stand for the population: no error is given.
    Differs      from the paper: limits on gaps of shares, not on mutual information.

    Parameters
    ----------
    attribute : ints (row,)
        Protected attribute of each row.
    client : ints (row,)
        Client that each row belongs to.
    label : ints (row,)
        True class of each row.
    overall, local : float, optional
        Largest gap over all rows, and inside each client; None for no limit.

    Examples
    --------
    >>> z = [0, 1]
    >>> round(fair_accuracy_limit(z, [0, 0], z, overall=0.4).value, 6)
    0.7

    References
    ----------
    hamman2024disparity
    """
    for name, gap in (("overall", overall), ("local", local)):
        if gap is not None and not gap >= 0.0:
            raise InputError(f"fair_accuracy_limit: expected {name} of at least 0, got {gap}.")
    counts = triple_counts(
        "fair_accuracy_limit", {"attribute": attribute, "client": client, "label": label}
    )
    p = (counts / counts.sum()).numpy()
    limits = [_gaps(p, None, overall)] if overall is not None else []
    if local is not None:
        limits += [_gaps(p, s, local) for s in range(p.shape[1])]
    rows = np.vstack([r for r, _ in limits]) if limits else None
    most = np.hstack([b for _, b in limits]) if limits else None
    n_labels = p.shape[2]
    gain = p[..., None] * np.eye(n_labels)
    sums = np.kron(np.eye(p.size), np.ones(n_labels))
    optimum = linprog(-gain.ravel(), A_ub=rows, b_ub=most, A_eq=sums, b_eq=np.ones(p.size))
    return FairAccuracyLimitResult(
        value=-float(optimum.fun),
        null=float(p.sum((0, 1)).max()),
        n=int(counts.sum()),
        range=(0.0, 1.0),
        conventions={
            "overall": overall,
            "local": local,
            "null": "always the most frequent label",
            "se": "none: the rows are taken as the population",
        },
        rule=torch.from_numpy(optimum.x.reshape(gain.shape)),
    )


def _gaps(
    p: Float[np.ndarray, "attribute client label"], client: int | None, most: float
) -> tuple[Float[np.ndarray, "limit unknown"], Float[np.ndarray, "limit"]]:
    """Return the limits on gaps between attribute values, over all clients or inside one."""
    inside = np.ones(p.shape[1]) if client is None else np.eye(p.shape[1])[client]
    seen = p * inside[:, None]
    size = seen.sum((1, 2))
    gaps: list[Any] = []
    for one, two in combinations(np.flatnonzero(size > 0), 2):
        for prediction in np.eye(p.shape[2]):
            row = np.zeros((*p.shape, p.shape[2]))
            row[one] = seen[one, ..., None] * prediction / size[one]
            row[two] = -seen[two, ..., None] * prediction / size[two]
            gaps += [row.ravel(), -row.ravel()]
    rows = np.array(gaps).reshape(len(gaps), math.prod(p.shape) * p.shape[2])
    return rows, np.full(len(gaps), most)
