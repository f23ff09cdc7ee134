"""Largest logit: evidence for the best class, which the softmax normalises away."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.detect._logits import LogitDetector


@final
@dataclass(frozen=True)
class MaxLogit(LogitDetector):
    """Negative of the largest logit.

    ``-max_c f_c``. Unlike a probability it does not shrink where an input has evidence for two
    similar classes at once. Adding a constant to all logits shifts it.

    Range        (-inf, inf), in units of the logits; higher = more unusual.
    Cost         one pass; state 24 bytes; O(classes) per row.
    Assumes      a classifier (or the next-token logits of a language model).
    Differs      nothing.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [5.0, -1.0, -1.0]])
    >>> MaxLogit().fit(logits, logits=logits).score(logits).tolist()
    [-2.0, -5.0]

    References
    ----------
    hendrycks2022scaling
    """

    paper: ClassVar[str] = "hendrycks2022scaling"
    unit: ClassVar[str] = "units of the logits"

    def scores(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return minus the largest logit."""
        return -torch.amax(logits, dim=1)
