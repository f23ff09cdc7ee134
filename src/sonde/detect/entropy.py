"""Entropy of the softmax: a classifier's uncertainty over all classes."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.detect._logits import LogitDetector, Rivals


@final
@dataclass(frozen=True)
class Entropy(LogitDetector):
    """Entropy of the softmax of the logits.

    ``-sum_c p_c ln p_c`` with ``p = softmax(f)``. Written as a sum of terms that are all positive,
    ``-ln p_1 + sum_c p_c (f_1 - f_c)`` with ``f_1`` the largest logit, so that a confident row
    keeps its digits.

    Range        [0, ln classes], in nats; higher = more unusual.
    Cost         one pass; state 24 bytes; O(classes) per row.
    Assumes      a classifier (or the next-token logits of a language model).
    Differs      nothing; small probabilities are not cut off.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).double()
    >>> Entropy().fit(logits, logits=logits).score(logits).round(decimals=4).tolist()
    [0.8324, 1.0986]

    References
    ----------
    shannon1948theory, hendrycks2017baseline
    """

    paper: ClassVar[str] = "hendrycks2017baseline"
    reach: ClassVar[tuple[float, float]] = (0.0, math.inf)
    unit: ClassVar[str] = "nats"

    def scores(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return the entropy in nats."""
        rivals = Rivals.of(logits)
        p = torch.exp(-rivals.gap - rivals.surprise[:, None])
        return rivals.surprise + (p * rivals.gap).sum(1)
