"""A linear classifier on hidden rows: ridge regression from moments, or logistic from a sample.

Ridge is exact and needs one pass over any number of rows; logistic reads a sample and follows the
border more closely where classes are far from Gaussian.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize  # pyright: ignore[reportUnknownVariableType]
from scipy.special import expit  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import rank_key
from sonde.core.instrument import Detector, NotLabelled, Read, Where
from sonde.core.ranges import check_ranges
from sonde.core.statistic import Statistic
from sonde.detect._probe import Labelled, ProbeScorer, probe_scorer
from sonde.stats import (
    ClassMoments,
    ClassMomentsState,
    HashSample,
    HashSampleState,
    TwoGroups,
)

GRID = tuple(10.0**power for power in range(1, -6, -1))
BELOW, GAIN = (1e-8, 1e-11, 1e-14), 0.99
"""Penalties for rows with almost all variance in few columns, if they lower the error by 1 %."""
INNER = 4

Penalty = float | Literal["auto"]


@final
@dataclass(frozen=True)
class LinearProbe(Detector):
    """Signed distance to a linear classifier's boundary between one class and all others.

    ``x . w + b``. ``ridge``: least squares on labels +1 and -1 with penalty
    ``l2 tr(T) / dim |w|^2`` for the scatter ``T`` of all labelled rows, from class moments alone.
    ``logistic``: mean logistic loss plus ``l2 / 2 tr(T) / (n dim) |w|^2`` on a hash sample, by
    L-BFGS. Both penalties are unchanged when all rows are scaled.

    Range        (-inf, inf); ridge: labels +-1; logistic: log odds. Higher = more like
                 ``positive``.
    Cost         one pass; ridge: state 8 (dim^2 + classes dim) bytes, result O(dim^3); logistic:
                 state 4 m dim bytes, result O(m dim) for each of some hundred steps.
    Assumes      labels; all classes but ``positive`` are one group.
    Differs      from the paper: no learning rate; the penalty is chosen from the fitted rows.

    Parameters
    ----------
    loss : {"ridge", "logistic"}, default="ridge"
        What is minimised.
    l2 : float or "auto", default="auto"
        Penalty; "auto" takes, of seven powers of ten, the one of least generalised
        cross-validation error (ridge) or of least loss on a quarter of the groups (logistic).
    positive : int, default=1
        The class for which scores are high.
    m : int, default=10000
        Most rows in the sample of ``logistic``.

    Examples
    --------
    >>> scorer = LinearProbe(l2=1e-6).fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    >>> [round(v, 3) for v in scorer.score(torch.tensor([[1.5], [2.5]])).tolist()]
    [0.0, 0.8]

    References
    ----------
    alain2016probes, golub1979gcv
    """

    loss: Literal["ridge", "logistic"] = "ridge"
    l2: Penalty = "auto"
    positive: int = 1
    m: int = 10_000
    paper: ClassVar[str] = "alain2016probes"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"l2": 0.1},
        {"loss": "logistic", "m": 64, "l2": 0.1},
        {"loss": "logistic", "m": 64},
    )

    def __post_init__(self) -> None:
        check_ranges(self, loss=("ridge", "logistic"), m=">= 2")
        if self.l2 != "auto" if isinstance(self.l2, str) else not self.l2 > 0.0:
            raise InputError(f"LinearProbe: expected l2 'auto' or a number > 0, got {self.l2!r}.")

    @property
    def usual(self) -> Where:
        """Select rows not labelled ``positive``."""
        return NotLabelled(self.positive)

    def reads(self) -> dict[str, Statistic[Any] | Read]:
        """Return the requests for each class's moments, and a labelled sample for ``logistic``."""
        if self.loss == "ridge":
            return {"by_class": ClassMoments()}
        return {
            "by_class": ClassMoments(),
            "sample": Read(HashSample(self.m), Labelled()),
            "label": Read(HashSample(self.m, "label"), Labelled()),
        }

    def result(
        self,
        by_class: ClassMomentsState,
        sample: HashSampleState | None = None,
        label: HashSampleState | None = None,
    ) -> ProbeScorer:
        """Compute the decision boundary."""
        groups = TwoGroups.of("LinearProbe", by_class, self.positive)
        scale = float(groups.total.diagonal().mean())
        if not scale > 0.0:
            raise InputError(
                "LinearProbe: expected rows that differ, got equal rows in both classes. "
                "Check that the states vary at this site."
            )
        if sample is None or label is None:
            l2, axis, origin = _ridge(groups, scale, self.l2)
            return probe_scorer(groups, axis, origin, self.positive, l2=l2)
        one = (label.rows == self.positive).to(sample.rows.device)
        l2, axis, origin = _logistic(sample, one, scale / groups.n_rows, self.l2)
        return probe_scorer(groups, axis, origin, self.positive, l2=l2, sampled_rows=len(one))


def _bordered(axis: Tensor, through: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Return the axis and a boundary point, given the score at ``through``."""
    return axis, through - axis * (value / axis.square().sum())


def _ridge(groups: TwoGroups, scale: float, l2: Penalty) -> tuple[float, Tensor, Tensor]:
    """Return penalty, axis and origin of ridge regression on +-1 from two groups' moments."""
    n0, n1 = groups.n
    n = n0 + n1
    # sum (x - m)(y - mean y) = 2 n0 n1 / n (m_1 - m_0)
    cross = groups.gap * (2.0 * n0 * n1 / n)
    values, vectors = torch.linalg.eigh(groups.total)
    values = values.clamp(min=0.0)
    along = vectors.T @ cross
    if isinstance(l2, str):
        y2 = 4.0 * n0 * n1 / n
        l2 = _least([_gcv(g * scale, values, along, y2, n) for g in (*GRID, *BELOW)])
    axis = vectors @ (along / (values + l2 * scale))
    mean = (n0 * groups.mean[0] + n1 * groups.mean[1]) / n
    return (l2, *_bordered(axis, mean, (n1 - n0) / n))


def _least(errors: Sequence[float]) -> float:
    """Return the penalty of least error; one below the grid only if it is clearly better."""
    best, below = (int(np.argmin(part)) for part in (errors[: len(GRID)], errors[len(GRID) :]))
    return BELOW[below] if errors[len(GRID) + below] < GAIN * errors[best] else GRID[best]


def _gcv(
    alpha: float, values: Float[Tensor, "dim"], along: Float[Tensor, "dim"], y2: float, n: float
) -> float:
    """Return a penalty's generalised cross-validation error (intercept counted)."""
    w = along / (values + alpha)
    rss = y2 - 2.0 * float(w @ along) + float(w.square() @ values)
    freedom = n - 1.0 - float((values / (values + alpha)).sum())
    return n * rss / freedom**2 if freedom > 0.0 else float("inf")


def _logistic(
    sample: HashSampleState, one: Bool[Tensor, "sample"], variance: float, l2: Penalty
) -> tuple[float, Tensor, Tensor]:
    """Return penalty, axis and origin of the logistic loss on the sample."""
    rows = sample.rows.double()
    mean = rows.mean(0)
    z = (rows - mean) / variance**0.5
    if isinstance(l2, str):
        l2 = _chosen(z, one, _inner(sample))
    weight, bias = _minimum(z, one, l2)
    return (l2, *_bordered(weight / variance**0.5, mean, bias))


def _inner(sample: HashSampleState) -> Bool[Tensor, "sample"]:
    """Return the rows that validate the penalty: every fourth group by sampling key."""
    ranks = rank_key(sample.group_draw)
    _, member = torch.unique(ranks, return_inverse=True)
    return member % INNER == 0


def _chosen(
    z: Float[Tensor, "sample dim"], one: Bool[Tensor, "sample"], judges: Bool[Tensor, "sample"]
) -> float:
    for part in (judges, ~judges):
        if not (bool(one[part].any()) and bool((~one[part]).any())):
            raise InputError(
                "LinearProbe: expected rows of both classes in both parts of the inner split, "
                f"got {int(one.sum())} and {int((~one).sum())} rows in all. Give more rows, or a "
                "number as l2."
            )
    losses: list[float] = []
    start = np.zeros(z.shape[1] + 1)
    for l2 in (*GRID, *BELOW):
        weight, bias = _minimum(z[~judges], one[~judges], l2, start)
        start = np.append(weight.numpy(), bias)
        logit = z[judges] @ weight + bias
        losses.append(
            float(torch.nn.functional.softplus(torch.where(one[judges], -logit, logit)).mean())
        )
    return _least(losses)


def _minimum(
    z: Float[Tensor, "sample dim"],
    one: Bool[Tensor, "sample"],
    l2: float,
    start: np.ndarray | None = None,
) -> tuple[Float[Tensor, "dim"], float]:
    """Return weight and bias that minimise mean logistic loss + l2 / 2 |w|^2."""
    x, sign = z.cpu().numpy(), np.where(one.cpu().numpy(), 1.0, -1.0)
    # columns of one size: else a column of large variance stops the search too early
    size = np.where((spread := x.std(0)) > 0, spread, 1.0)
    x, ridge = x / size, l2 / np.square(size)

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ v[:-1] + v[-1])
        pull = -sign * expit(-margin) / len(sign)
        value = float(np.logaddexp(0.0, -margin).mean() + 0.5 * ridge @ np.square(v[:-1]))
        return value, np.append(pull @ x + ridge * v[:-1], pull.sum())

    optimum = minimize(  # pyright: ignore[reportUnknownVariableType, reportCallIssue]
        loss,
        np.zeros(x.shape[1] + 1) if start is None else start * np.append(size, 1.0),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "gtol": 1e-9, "ftol": 1e-15},
    )
    return torch.from_numpy(optimum.x[:-1] / size).to(z), float(optimum.x[-1])
