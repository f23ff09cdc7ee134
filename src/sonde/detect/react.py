"""Energy after activations above a common threshold have been clipped.

For classifiers whose unusual inputs raise a few units far above anything seen in training.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.edit import Clamp
from sonde.core.instrument import Detector
from sonde.core.statistic import Statistic
from sonde.detect._head import check_head
from sonde.detect._shaping import ShapedScorer, check_share
from sonde.stats import HeadWeights, HeadWeightsState, Quantiles, QuantilesState


@final
@dataclass(frozen=True)
class ReAct(Detector):
    """Energy of the logits that rows give when no activation may exceed a common threshold.

    The threshold ``c`` is a quantile of all activations of all units together:
    ``-ln sum_k exp(W min(x, c) + b)_k``. Usual rows lose little, rows with a few huge activations
    lose the evidence that these made.

    Range        (-inf, inf), in units of the logits; higher = more unusual.
    Cost         one pass; state 8 sketch dim bytes for each doubling of the rows beyond ``sketch``;
                 O(classes dim) per row.
    Assumes      rows are the input of the model's final linear layer; activations that grow one
                 way, as after a ReLU.
    Differs      nothing but how the quantile is found: exact up to ``sketch`` rows, else its rank
                 is right within the share that ``conventions`` states.

    Parameters
    ----------
    quantile : float, default=0.9
        Share of all activations that are not clipped.
    sketch : int, default=256
        Capacity of the quantile sketch; even.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    >>> bias = torch.tensor([0.0, -1.0, 0.5])
    >>> x = torch.tensor([[1.5, 0.5], [1.0, 0.0], [1.5, 1.0]])
    >>> scorer = ReAct().fit(x, head=(weight, bias))
    >>> scorer.edit.high
    1.5
    >>> scorer.score(torch.tensor([[2.0, 1.0]])).double().round(decimals=4).tolist()
    [-2.1041]

    References
    ----------
    sun2021react
    """

    quantile: float = 0.9
    sketch: int = 256
    paper: ClassVar[str] = "sun2021react"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"quantile": 0.7, "sketch": 16})

    def __post_init__(self) -> None:
        check_share("ReAct", "quantile", self.quantile)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read quantiles of every unit, and the head."""
        return {"quantiles": Quantiles(self.sketch), "head": HeadWeights()}

    def result(self, quantiles: QuantilesState, head: HeadWeightsState) -> ShapedScorer:
        """Take the quantile over all units and keep the head."""
        check_head("ReAct", head, len(quantiles.low))
        threshold = quantiles.pooled(self.quantile)
        return ShapedScorer(
            value=threshold,
            n=quantiles.n,
            unit="units of the logits",
            conventions={
                "value": "threshold above which activations are clipped, in their own units",
                "quantile": self.quantile,
                "rank_error": Quantiles(self.sketch).bound(quantiles) / quantiles.n,
                "se": "not given for a scorer: calibrate its scores",
            },
            owner="ReAct",
            edit=Clamp(high=threshold),
            head=head,
        )
