"""Distance of a row to the decision boundaries, relative to its distance to the mean."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import HEAD_INPUT
from sonde.core.statistic import Statistic
from sonde.detect._head import check_head, head_logits
from sonde.detect._metric import check_fitted_width
from sonde.stats import HeadWeights, HeadWeightsState, Moments, MomentsState

MOST_CLASSES = 8192
ENTRIES = 1 << 20  # of logits at a time
BLOCK = 512  # rows at a time whose distances are in one buffer, which stays in the cache


@final
@dataclass(frozen=True, kw_only=True)
class FDBDScorer(Scorer):
    """Mean distance to the decision boundaries over distance to ``mean``, negated.

    ``steepness`` holds one entry for each pair of classes: one over the distance of their weights,
    divided by the number of boundaries of the first class; 0 if the pair has no boundary. ``value``
    is the root mean square distance of the fitted rows to their mean.
    """

    mean: Float[Tensor, "dim"]
    head: HeadWeightsState
    steepness: Float[Tensor, "class class"]
    floor: float

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return minus each row's mean distance to the boundaries over its distance to the mean."""
        check_fitted_width("FDBD", x, len(self.mean))
        step = max(1, ENTRIES // len(self.steepness))
        return torch.cat([self._scores(part) for part in x.split(step)])

    def _scores(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        logits = head_logits(self.head, x)
        best, winner = logits.max(dim=1, keepdim=True)
        steepness = self.steepness.to(logits)[winner.flatten()]
        boundary = ((best - logits) * steepness).sum(1)
        length = _lengths(x.to(logits), self.mean.to(logits)).clamp(min=self.floor)
        return infinite_where_nonfinite(-boundary / length, length[:, None])


def _lengths(x: Float[Tensor, "row dim"], mean: Float[Tensor, "dim"]) -> Float[Tensor, "row"]:
    """Return each row's distance to the mean."""
    lengths, gap = x.new_empty(len(x)), x.new_empty(min(len(x), BLOCK), x.shape[1])
    for part, out in zip(x.detach().split(BLOCK), lengths.split(BLOCK), strict=True):
        torch.linalg.vector_norm(torch.sub(part, mean, out=gap[: len(part)]), dim=1, out=out)
    return lengths


@final
@dataclass(frozen=True)
class FDBD(Detector):
    """Mean distance of each row to the boundaries of its class, over its distance to the mean.

    Relative to their distance to the mean, usual rows lie deep inside their class and unusual rows
    near a boundary. ``-(1 / (K - 1)) sum_j |f_c - f_j| / |w_c - w_j| / |x - m|`` with ``c`` the
    class of the largest logit. Pairs of classes with the same weights have no boundary and are left
    out. A row at the very mean counts as being a rounding error away from it.

    Range        (-inf, 0], dimensionless; higher = more unusual.
    Cost         one pass; state 16 dim bytes; 8 classes^2 bytes; O(classes dim) per row.
    Assumes      rows are the input of the model's final linear layer, with at least two classes of
                 different weights and at most 8192.
    Differs      nothing; some public code sums over boundaries instead of averaging.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    >>> bias = torch.tensor([0.0, -1.0, 0.5])
    >>> scorer = FDBD().fit([[1.0, 0.0], [0.0, 1.0]], head=(weight, bias))
    >>> scorer.score(torch.tensor([[2.0, 1.0]])).double().round(decimals=4).tolist()
    [-0.495]

    References
    ----------
    liu2024fdbd
    """

    paper: ClassVar[str] = "liu2024fdbd"

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for each unit's mean and variance, and the final layer."""
        return {"moments": Moments("diag"), "head": HeadWeights()}

    def result(self, moments: MomentsState, head: HeadWeightsState) -> FDBDScorer:
        """Compute the distances between the classes' weights."""
        check_head("FDBD", head, len(moments.mean))
        spread = float(moments.variance.sum().sqrt())
        size = float(moments.mean.norm())
        rounding = torch.finfo(torch.float32).eps * (spread + size)
        return FDBDScorer(
            value=spread,
            n=moments.n,
            range=(float("-inf"), 0.0),
            flags=() if spread > 0.0 else ("dead",),
            conventions={
                "value": "root mean square distance of the fitted rows to their mean",
                "boundaries": "mean over classes with other weights than the predicted one",
                "se": "not given for a scorer: calibrate its scores",
            },
            mean=moments.mean,
            head=head,
            steepness=_steepness(head.weight.double()),
            floor=rounding if rounding > 0.0 else 1.0,
        )


def _steepness(weight: Float[Tensor, "class dim"]) -> Float[Tensor, "class class"]:
    """Return ``1 / |w_c - w_j|`` of each class pair, over the number of boundaries of ``c``.

    A squared distance within rounding counts as no boundary.
    """
    n_classes = len(weight)
    if n_classes > MOST_CLASSES:
        raise InputError(
            f"FDBD: expected a head of at most {MOST_CLASSES} classes, because all pairs of "
            "classes are stored, got "
            f"{n_classes}. Use Energy or KNN for it."
        )
    squares = weight.square().sum(1)
    scale = squares[:, None] + squares[None, :]
    gaps = scale - 2.0 * weight @ weight.T
    apart = gaps > 1e-12 * scale
    if not bool(apart.any(1).all()):
        raise InputError(
            f"FDBD: expected a head of two or more classes with different weights, got {n_classes} "
            "classes without a boundary. Use Mahalanobis or KNN."
        )
    steepness = gaps.where(apart, torch.ones_like(gaps)).rsqrt() * apart
    return steepness / apart.sum(1, keepdim=True)
