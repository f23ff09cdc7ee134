"""Divergence of a prediction from the nearest typical prediction of a class."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width

BLOCK_ENTRIES, LEAST_ROWS = 1 << 16, 64
VANISHING = -800.0  # its exponential is 0; double precision alone can hold a gap that is infinite


@dataclass(frozen=True)
class PredictedPosteriorsState(State):
    """For each predicted class: count of its rows, and sum of their probabilities.

    ``plogp`` is the sum of ``p ln p`` over all rows and classes.
    """

    rows: Int[Tensor, "class"]
    sum: Float[Tensor, "class class"]
    plogp: Float[Tensor, ""]


@final
@dataclass(frozen=True)
class PredictedPosteriors(Statistic[PredictedPosteriorsState]):
    """Mean softmax of the rows predicted as each class, independent of how data are split.

    Parameters
    ----------
    max_classes : int, default=4096
        More logits than this are an error: the state is square in them.
    """

    max_classes: int = 4096

    def observe(self, logits: Float[Tensor, "row class"]) -> PredictedPosteriorsState:
        """Return the counts and sums of a batch."""
        k = logits.shape[1]
        if k > self.max_classes:
            raise InputError(
                f"KLMatching: expected at most {self.max_classes} classes, got {k} logits. "
                "Raise max_classes if a table of classes by classes fits into memory."
            )
        total = torch.zeros(k, k, dtype=torch.float64, device=logits.device)
        rows = torch.zeros(k, dtype=torch.int64, device=logits.device)
        plogp = total.new_zeros(())
        for part in blocks(logits):
            p, own = posteriors(part)
            winner = part.max(1).indices
            total.index_add_(1, winner, p)
            rows += torch.bincount(winner, minlength=k)
            plogp += own.sum()
        return PredictedPosteriorsState(rows, total.T.contiguous(), plogp)

    def merge(
        self, a: PredictedPosteriorsState, b: PredictedPosteriorsState
    ) -> PredictedPosteriorsState:
        """Return the counts and sums of both states."""
        return PredictedPosteriorsState(a.rows + b.rows, a.sum + b.sum, a.plogp + b.plogp)


def blocks(logits: Float[Tensor, "row class"]) -> tuple[Float[Tensor, "_row class"], ...]:
    """Return blocks of rows whose probabilities fit the CPU cache."""
    return logits.split(max(LEAST_ROWS, BLOCK_ENTRIES // logits.shape[1]))


def posteriors(
    logits: Float[Tensor, "row class"],
) -> tuple[Float[Tensor, "class row"], Float[Tensor, "row"]]:
    """Return probabilities with classes first, and each row's ``sum_c p_c ln p_c``.

    Classes come first because reducing over a short last axis is slow.
    """
    f = logits.T.to(torch.float64, copy=True).contiguous()
    f -= f.amax(0)
    if logits.dtype == torch.float64:
        f.clamp_(min=VANISHING)
    p = f.exp()
    total = p.sum(0)
    p /= total
    return p, f.mul_(p).sum(0) - total.log()


@final
@dataclass(frozen=True, kw_only=True)
class KLMatchingScorer(Scorer):
    """Divergence from the nearest row of ``typical``, which has one for each class in ``classes``.

    ``value`` is the fitted rows' mean divergence from the row of their predicted class.
    """

    classes: Int[Tensor, "known"]
    typical: Float[Tensor, "known class"]

    def score(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return each row's smallest divergence, in nats and float64."""
        check_fitted_width("KLMatching", logits, self.typical.shape[1], "classes")
        floor = torch.finfo(torch.float64).tiny
        table = self.typical.to(logits.device).double().clamp(min=floor).log()
        divergences = [logits.new_empty(0, dtype=torch.float64)]
        for part in blocks(logits):
            p, own = posteriors(part)
            divergences.append(own - (table @ p).amax(0))
        return infinite_where_nonfinite(torch.cat(divergences).clamp(min=0.0), logits=logits)


@final
@dataclass(frozen=True)
class KLMatching(Detector):
    """Divergence of each row's softmax from the nearest class's mean softmax.

    ``min_k KL(p || d_k)`` with ``d_k`` the mean of ``p`` over the fitted rows that are predicted as
    ``k``; classes that no fitted row is predicted as do not take part. A usual row divides its
    probability among the same classes as fitted rows of its predicted class.

    Range        [0, inf), in nats; higher = more unusual.
    Cost         one pass; state 8 classes^2 bytes; O(classes^2) per row.
    Assumes      a classifier; no labels are used. Fit on rows that the model was not trained on: it
                 is less sure about them.
    Differs      nothing; where ``d_k`` is 0 in double precision it counts as the smallest number.

    Parameters
    ----------
    max_classes : int, default=4096
        More logits than this are an error.

    Examples
    --------
    >>> typical = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]).log()
    >>> scorer = KLMatching().fit(typical, logits=typical)
    >>> scorer.score(torch.tensor([[0.5, 0.3, 0.2]]).log()).round(decimals=4).tolist()
    [0.2332]

    References
    ----------
    hendrycks2022scaling
    """

    max_classes: int = 4096
    paper: ClassVar[str] = "hendrycks2022scaling"

    def __post_init__(self) -> None:
        check_ranges(self, max_classes=">= 1")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each predicted class's sums."""
        return {"posteriors": PredictedPosteriors(self.max_classes)}

    def result(self, posteriors: PredictedPosteriorsState) -> KLMatchingScorer:
        """Compute the mean softmax of each predicted class."""
        classes = torch.nonzero(posteriors.rows).flatten()
        total = posteriors.sum[classes]
        typical = total / posteriors.rows[classes, None]
        n = int(posteriors.rows.sum())
        return KLMatchingScorer(
            value=float(posteriors.plogp - torch.xlogy(total, typical).sum()) / n,
            n=n,
            unit="nats",
            range=(0.0, float("inf")),
            conventions={
                "value": "mean divergence of the fitted rows from their predicted class",
                "classes": f"{len(classes)} of {len(posteriors.rows)} were predicted",
                "se": "not given for a scorer: calibrate its scores",
            },
            classes=classes,
            typical=typical,
        )
