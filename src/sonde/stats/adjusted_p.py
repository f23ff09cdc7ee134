"""P-values of many tests, adjusted for their number."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError

Correction = Literal["holm", "bh"]


def adjusted_p(p: Float[Tensor, "test"], correction: Correction = "holm") -> Float[Tensor, "test"]:
    """Return p-values adjusted so that they compare with a level as for a single test.

    "holm" bounds the chance of any false rejection by the level, whatever the dependence. "bh"
    bounds the expected share of false ones among the rejections, for independent or positively
    dependent tests. NaN stays NaN and does not count.

    Parameters
    ----------
    p : Float[Tensor, "test"]
        The p-value of each test; NaN for a test that was not made.
    correction : {"holm", "bh"}, default="holm"
        What is bounded: the chance of any false rejection, or the expected fraction of false ones.

    Examples
    --------
    >>> adjusted_p(torch.tensor([0.01, 0.04, 0.03])).round(decimals=4).tolist()
    [0.03, 0.06, 0.06]
    >>> adjusted_p(torch.tensor([0.01, 0.04, 0.03]), "bh").round(decimals=4).tolist()
    [0.03, 0.04, 0.04]

    References
    ----------
    holm1979simple, benjamini1995fdr
    """
    if correction not in ("holm", "bh"):
        raise InputError(f"adjusted_p: expected correction 'holm' or 'bh', got {correction!r}.")
    out = torch.full(p.shape, torch.nan, dtype=torch.float64, device=p.device)
    defined = torch.nonzero(~torch.isnan(p)).flatten()
    ordered, order = p[defined].double().sort()
    rank = torch.arange(len(defined), dtype=torch.float64, device=p.device)
    if correction == "holm":
        steps = (ordered * (len(defined) - rank)).cummax(0).values if len(defined) else ordered
    else:
        scaled = (ordered * len(defined) / (rank + 1)).flip(0)
        steps = scaled.cummin(0).values.flip(0) if len(defined) else ordered
    out[defined[order]] = steps.clamp(max=1.0)
    return out
