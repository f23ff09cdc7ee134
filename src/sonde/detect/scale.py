"""Energy after scaling rows; more if the largest activations hold less of the sum."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.core.site import HEAD_INPUT
from sonde.core.statistic import Statistic
from sonde.detect._shaping import Shape, ShapedScorer, shaped_scorer
from sonde.stats import HeadWeights, HeadWeightsState, Scalars, ScalarsState


@renamed(remove="share")
@final
@dataclass(frozen=True)
class SCALE(Detector):
    """Energy of the logits after each row's activations are scaled by a common factor.

    The factor is ``exp(s1 / s2)`` with ``s1`` the sum of a row and ``s2`` that of its largest
    entries. Unlike ``ASH`` nothing is removed, so the order of the logits stays (without a bias).
    Nothing is fitted but the head.

    Range        (-inf, inf), in units of the logits; higher = more unusual.
    Cost         one pass that counts; state 48 dim bytes; O(dim ln dim + classes dim) per row.
    Assumes      rows are the input of the model's final linear layer, and not negative, as after a
                 ReLU. A row whose largest entries have no positive sum is left as it is.
    Differs      from the paper: the form for a trained model alone, no training; rows of the site.

    Parameters
    ----------
    remove : float, default=0.85
        Fraction of the activations that the sum of the largest activations leaves out, in [0, 1).

    Examples
    --------
    >>> import torch
    >>> scorer = SCALE(remove=0.5).fit([[4.0, 1.0, 3.0, 2.0]], head=(torch.eye(4) / 10, None))
    >>> scorer.score(torch.tensor([[4.0, 1.0, 3.0, 2.0]])).double().round(decimals=4).tolist()
    [-2.5357]

    References
    ----------
    xu2024scale
    """

    remove: float = 0.85
    paper: ClassVar[str] = "xu2024scale"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"remove": 0.5})

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)")

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for each unit's range, and the final layer."""
        return {"units": Scalars(), "head": HeadWeights()}

    def result(self, units: ScalarsState, head: HeadWeightsState) -> ShapedScorer:
        """Return the scorer with the final layer."""
        return shaped_scorer("SCALE", Shape("stretch_all", self.remove), units, head)
