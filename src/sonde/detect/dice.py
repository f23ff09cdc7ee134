"""Energy of the logits after small weights of the final layer are removed."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import HEAD_INPUT
from sonde.core.statistic import Statistic
from sonde.detect._head import check_head, head_energy
from sonde.detect._metric import check_fitted_width
from sonde.stats import HeadWeights, HeadWeightsState, Moments, MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class DICEScorer(Scorer):
    """Energy of the logits of the sparse ``head``; ``value`` is the fraction of weights kept."""

    head: HeadWeightsState
    threshold: float

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the energy of each row's sparse logits."""
        check_fitted_width("DICE", x, self.head.weight.shape[1])
        return infinite_where_nonfinite(head_energy(self.head, x), x)


@renamed(remove="share")
@final
@dataclass(frozen=True)
class DICE(Detector):
    """Energy of the logits when the final layer keeps only weights of large mean contribution.

    The contribution of a weight is its product with the mean of its unit, ``W_ku m_u``. Weights
    whose contribution is not above the ``remove`` quantile of all contributions become 0: they add
    mostly noise, and unusual rows have more noise.

    Range        (-inf, inf), in units of the logits; higher = more unusual.
    Cost         one pass; state 16 dim bytes; O(classes dim) per row.
    Assumes      rows are the input of the model's final linear layer; not negative, as after a
                 ReLU.
    Differs      nothing; the quantile interpolates between neighbours.

    Parameters
    ----------
    remove : float, default=0.9
        Fraction of the head's weights that is removed, in [0, 1).

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    >>> bias = torch.tensor([0.0, -1.0, 0.5])
    >>> scorer = DICE(remove=0.5).fit([[2.0, 0.0], [0.0, 1.0]], head=(weight, bias))
    >>> scorer.score(torch.tensor([[2.0, 1.0]])).double().round(decimals=4).tolist()
    [-2.6803]

    References
    ----------
    sun2022dice
    """

    remove: float = 0.9
    paper: ClassVar[str] = "sun2022dice"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"remove": 0.5}, {"remove": 0.2})

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)")

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for each unit's mean, and the final layer."""
        return {"moments": Moments("diag"), "head": HeadWeights()}

    def result(self, moments: MomentsState, head: HeadWeightsState) -> DICEScorer:
        """Remove the weights that contribute least."""
        check_head("DICE", head, len(moments.mean))
        contribution = head.weight.double() * moments.mean
        threshold = _quantile(contribution.flatten(), self.remove)
        keep = contribution > threshold
        sparse = replace(head, weight=head.weight.where(keep, torch.zeros_like(head.weight)))
        return DICEScorer(
            value=float(keep.double().mean()),
            n=moments.n,
            unit="units of the logits",
            flags=() if bool(keep.any()) else ("dead",),
            conventions={
                "value": "fraction of the head's weights that are kept",
                "se": "not given for a scorer: calibrate its scores",
            },
            head=sparse,
            threshold=threshold,
        )


def _quantile(values: Float[Tensor, "value"], q: float) -> float:
    """Return a linearly interpolated quantile, for any number of values."""
    rank = q * (len(values) - 1)
    below = int(rank)
    low, high = values.sort().values[[below, min(below + 1, len(values) - 1)]].tolist()
    return low + (rank - below) * (high - low)
