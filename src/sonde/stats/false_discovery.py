"""The Benjamini-Hochberg procedure for many tests."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import InputError


def benjamini_hochberg(p: Float[Tensor, "test"], rate: float = 0.05) -> Bool[Tensor, "test"]:
    """Return the mask of discoveries at this false discovery rate.

    The discoveries are the ``i`` smallest p-values, for the largest ``i`` with
    ``p_(i) <= i rate / tests``.

    Parameters
    ----------
    p : Float[Tensor, "test"]
        The p-value of each test.
    rate : float, default=0.05
        Expected fraction of false discoveries, in (0, 1).

    Examples
    --------
    >>> benjamini_hochberg(torch.tensor([0.01, 0.9, 0.03, 0.02])).tolist()
    [True, False, True, True]

    References
    ----------
    benjamini1995fdr
    """
    if not 0 < rate < 1:
        raise InputError(f"benjamini_hochberg: expected a rate in (0, 1), got {rate}.")
    ordered, order = p.double().sort()
    line = rate * torch.arange(1, len(p) + 1, dtype=torch.float64, device=p.device) / len(p)
    below = torch.nonzero(ordered <= line).flatten()
    discoveries = torch.zeros(len(p), dtype=torch.bool, device=p.device)
    if len(below):
        discoveries[order[: int(below[-1]) + 1]] = True
    return discoveries
