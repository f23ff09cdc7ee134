"""Means over tokens, in the type of the output whatever autocast would make of it."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.autocast import is_autocast


def weighted_mean(
    x: Float[Tensor, "*site row pos dim"],
    weights: Float[Tensor, "row 1 pos"],
    careful: bool = False,
) -> Float[Tensor, "*site row dim"]:
    """Return ``sum_pos weight x`` in the type of ``x``, summed in that of the weights.

    With ``careful`` tokens of weight 0 are silenced first, because 0 times NaN is NaN.

    Examples
    --------
    >>> weighted_mean(torch.tensor([[[1.0], [4.0]]]), torch.tensor([[[0.5, 0.5]]])).tolist()
    [[2.5]]
    """
    own, dtype = x.dtype, weights.dtype
    wide = x if own is dtype else x.to(dtype)
    if careful:
        wide = wide.masked_fill(weights.transpose(1, 2) == 0, 0.0)
    if is_autocast(x.device):
        with torch.autocast(x.device.type, enabled=False):
            rows = torch.matmul(weights, wide).squeeze(-2)
    else:
        rows = torch.matmul(weights, wide).squeeze(-2)
    return rows if own is dtype else rows.to(own)
