"""Largest softmax probability: the baseline for a classifier's other scores."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.detect._logits import LogitDetector, Rivals


@final
@dataclass(frozen=True)
class MSP(LogitDetector):
    """Negative of the largest softmax probability.

    ``-max_c p_c`` with ``p = softmax(f / T)``. A classifier tends to be less sure of its answer
    where the input is unusual or the answer wrong.

    Range        [-1, -1 / classes]; higher = more unusual.
    Cost         one pass; state 24 bytes; O(classes) per row.
    Assumes      a classifier (or the next-token logits of a language model).
    Differs      nothing in value; ``1 - p`` is kept to relative precision, so rows that are surer
                 than single precision can tell from certainty still differ.

    Parameters
    ----------
    temperature : float, default=1.0
        Divisor of the logits, above 0.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> MSP().fit(logits, logits=logits).score(logits).round(decimals=4).tolist()
    [-0.6652, -0.3333]

    References
    ----------
    hendrycks2017baseline
    """

    temperature: float = 1.0
    paper: ClassVar[str] = "hendrycks2017baseline"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"temperature": 2.0})
    reach: ClassVar[tuple[float, float]] = (-1.0, 0.0)

    def __post_init__(self) -> None:
        check_ranges(self, temperature="> 0")

    def scores(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return ``-p`` of the largest probability, in float64."""
        return -torch.sigmoid(-Rivals.of(logits / self.temperature).log_odds.double())
