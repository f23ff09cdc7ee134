"""Flags that several measures raise by one rule."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.stats import MomentsState

LOW, LOST = 16.0, 4.0


SMALLEST = torch.finfo(torch.float64).tiny
"""Squares below that have lost digits: their number is a multiple of 5e-324."""


def precision_flags(spread: float, dtype: torch.dtype = torch.float32) -> list[str]:
    """Return the flags of rows whose relative standard deviation is ``spread``.

    Rounding of the rows adds noise of relative size ``unit / spread``, with the unit roundoff of
    the type in which the model made the rows. A deep forward pass adds several times as much.
    """
    unit = torch.finfo(dtype).eps / 2.0
    if spread < LOST * unit:
        return ["lost_precision"]
    return ["low_precision"] if spread < LOW * unit else []


def relative_spread(mean: Float[Tensor, "dim"], variance: Float[Tensor, "_units"]) -> float:
    """Return ``sqrt(total variance) / |mean|``; infinite if the mean is zero."""
    length = float(mean.detach().norm())
    return math.sqrt(max(float(variance.detach().sum()), 0.0)) / length if length else math.inf


def moment_flags(moments: MomentsState) -> tuple[str, ...]:
    """Return the flags that follow from the moments of float32 rows."""
    variance = moments.variance
    if not float(variance.detach().sum()) > 0.0:
        return ("dead",)
    flags = precision_flags(relative_spread(moments.mean, variance))
    if float(variance.detach().sum()) < SMALLEST:
        flags = ["lost_precision"]
    if moments.n <= len(variance):
        flags.append("few_rows")
    return tuple(flags)
