"""Energy after activations are clipped at a common threshold.

For classifiers whose unusual inputs raise a few units far above anything seen in training.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from sonde.core.edit import Clamp
from sonde.core.errors import InputError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.site import HEAD_INPUT
from sonde.core.state import LATER
from sonde.core.statistic import Statistic
from sonde.detect._head import check_head
from sonde.detect._shaping import ShapedScorer
from sonde.stats import EntryCounts, EntryCountsState, HeadWeights, HeadWeightsState


@final
@dataclass(frozen=True)
class ReAct(Detector):
    """Energy of the logits that rows give when no activation may exceed a common threshold.

    The threshold ``c`` is a quantile of all activations of all units together:
    ``-ln sum_k exp(W min(x, c) + b)_k``. Usual rows lose little, rows with a few huge activations
    lose the evidence that these made.

    Range        (-inf, inf), in units of the logits; higher = more unusual.
    Cost         one pass; state 512 KB; O(classes dim) per row.
    Assumes      rows are the input of the model's final linear layer; activations that grow one
                 way, as after a ReLU.
    Differs      nothing but how the quantile is found: from counts, within 1 part in 128, much
                 nearer where activations are dense.

    Parameters
    ----------
    quantile : float, default=0.9
        Share of all activations that are not clipped.
    threshold : float or None, default=None
        Clip there whatever the quantile, as for a threshold of a paper or another data set.

    Examples
    --------
    >>> import torch
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
    threshold: float | None = field(default=None, metadata={LATER: True})
    word: ClassVar[str] = "react"
    paper: ClassVar[str] = "sun2021react"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"quantile": 0.7},
        {"threshold": 1.0},
    )

    def __post_init__(self) -> None:
        check_ranges(self, quantile="[0, 1)")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"ReAct: expected a finite threshold, got {self.threshold}.")

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for the histogram of activations, and the final layer."""
        return {"entries": EntryCounts(), "head": HeadWeights()}

    def result(self, entries: EntryCountsState, head: HeadWeightsState) -> ShapedScorer:
        """Choose the threshold or quantile over all units, and keep the final layer."""
        check_head("ReAct", head, entries.dim)
        fixed = self.threshold is not None
        threshold = entries.quantile(self.quantile) if self.threshold is None else self.threshold
        return ShapedScorer(
            value=threshold,
            n=entries.n,
            unit="units of the logits",
            conventions={
                "value": "threshold above which activations are clipped, in their own units",
                "quantile": None if fixed else self.quantile,
                "resolution": 0.0 if fixed else EntryCounts.relative_width,
                "se": "not given for a scorer: calibrate its scores",
            },
            owner="ReAct",
            edit=Clamp(high=threshold),
            head=head,
        )
