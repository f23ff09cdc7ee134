"""Energy after each row is pruned to its largest activations."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

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
class ASH(Detector):
    """Energy of the logits for rows pruned to their largest activations.

    With ``s1`` the sum of a row and ``s2`` that of its kept entries, variant "p" keeps them as they
    are, "b" sets them to ``s1 / n_kept``, "s" multiplies them by ``exp(s1 / s2)``. The fewer units
    hold most of a row's sum, the less its evidence grows. Of equal activations the first are kept.
    Nothing is fitted but the head.

    Range        (-inf, inf), in units of the logits; higher = more unusual.
    Cost         one pass that counts; state 48 dim bytes; O(dim ln dim + classes dim) per row.
    Assumes      rows are the input of the model's final linear layer, and not negative, as after a
                 ReLU. A row whose kept entries have no positive sum is left as it is.
    Differs      from the paper: rows of the site, not maps before pooling; at least one activation
                 is kept; the activation itself is never written to.

    Parameters
    ----------
    variant : {"s", "b", "p"}, default="s"
        Scale, fill or only prune.
    remove : float, default=0.65
        Fraction of the activations that is removed, in [0, 1): the smallest ones.

    Examples
    --------
    >>> import torch
    >>> scorer = ASH(remove=0.5).fit([[4.0, 1.0, 3.0, 2.0]], head=(torch.eye(4) / 10, None))
    >>> scorer.score(torch.tensor([[4.0, 1.0, 3.0, 2.0]])).double().round(decimals=4).tolist()
    [-2.3799]

    References
    ----------
    djurisic2023ash
    """

    variant: Literal["s", "b", "p"] = "s"
    remove: float = 0.65
    paper: ClassVar[str] = "djurisic2023ash"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"variant": "b"},
        {"variant": "p", "remove": 0.5},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)", variant=("s", "b", "p"))

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for each unit's range and the final layer."""
        return {"units": Scalars(), "head": HeadWeights()}

    def result(self, units: ScalarsState, head: HeadWeightsState) -> ShapedScorer:
        """Return the scorer with the final layer."""
        how: dict[str, Literal["stretch", "fill", "prune"]]
        how = {"s": "stretch", "b": "fill", "p": "prune"}
        return shaped_scorer("ASH", Shape(how[self.variant], self.remove), units, head)
