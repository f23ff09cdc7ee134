"""The update of a linear layer that gives some inputs new outputs at the least cost elsewhere."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.weights import LowRank


def least_update(
    residual: Float[Tensor, "out key"],
    keys: Float[Tensor, "dim key"],
    reach: Float[Tensor, "dim key"],
    weight: float = 0.0,
) -> LowRank:
    """Return ``D = R (weight I + K^T M K)^-1 K^T M`` with ``M K`` given as ``reach``.

    With ``M = C^-1`` this is the minimum of ``|D K - R|^2 + weight tr(D C D^T)``, and at weight 0
    that of ``tr(D C D^T)`` under ``D K = R``; with ``M`` a projector, the minimum of
    ``|D K - R|^2 + weight |D|^2`` among updates in its range.

    Parameters
    ----------
    residual : Float[Tensor, "out key"]
        By how much the output of each key is to change; 0 for one that must stay.
    keys, reach : Float[Tensor, "dim key"]
    weight : float, default=0.0
    """
    gram = keys.T @ reach
    inner = gram + weight * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    left = torch.linalg.lstsq(inner.T, residual.T, driver="gelsd").solution.T
    return LowRank(left, reach.T)
