"""Generalised entropy: entropy with much more weight on small deviations from certainty."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.detect._logits import LogitDetector, Rivals


@final
@dataclass(frozen=True)
class GEN(LogitDetector):
    """Generalised entropy of the largest softmax probabilities.

    ``sum over the m largest p_c of p_c^gamma (1 - p_c)^gamma`` with ``p = softmax(f)``. A small
    ``gamma`` tells apart rows that are all nearly certain; leaving out all but ``m`` classes keeps
    the noise of many tiny probabilities out.

    Range        [0, m / 4^gamma]; higher = more unusual.
    Cost         one pass; state 24 bytes; O(classes log m) per row.
    Assumes      a classifier (or the next-token logits of a language model).
    Differs      nothing; powers are taken of exact logarithms, so no probability is cut off.

    Parameters
    ----------
    gamma : float, default=0.1
        Exponent, in (0, 1].
    m : int, default=100
        How many of the largest probabilities enter; all where there are fewer classes.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).double()
    >>> GEN().fit(logits, logits=logits).score(logits).round(decimals=4).tolist()
    [2.4838, 2.5811]

    References
    ----------
    liu2023gen
    """

    gamma: float = 0.1
    m: int = 100
    paper: ClassVar[str] = "liu2023gen"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"gamma": 0.5, "m": 2})
    reach: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_ranges(self, gamma="(0, 1]", m=">= 1")

    def scores(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return the sum of ``p^gamma (1 - p)^gamma`` over the largest probabilities."""
        rivals = Rivals.of(logits)
        gap = rivals.gap
        if self.m <= gap.shape[1]:
            gap = gap.topk(self.m - 1, dim=1, largest=False).values
        log_p = -gap - rivals.surprise[:, None]
        others = torch.exp(self.gamma * (log_p + torch.log1p(-torch.exp(log_p)))).sum(1)
        largest = torch.exp(self.gamma * (rivals.log_odds - 2.0 * rivals.surprise))
        return largest + others
