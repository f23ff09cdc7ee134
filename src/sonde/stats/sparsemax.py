"""Weights that sum to one, most of them exactly zero."""

import torch
from jaxtyping import Float
from torch import Tensor


def sparsemax(z: Float[Tensor, "row entry"]) -> Float[Tensor, "row entry"]:
    """Return each row's nearest point on the probability simplex.

    ``max(z - t, 0)`` with the ``t`` at which it sums to 1, found by sorting the entries within 1 of
    the largest: ``t`` is never lower. Adding a constant to a row changes nothing; where the largest
    entry leads by 1 or more, it gets all the weight.
    Differentiable almost everywhere.

    Parameters
    ----------
    z : Float[Tensor, "row entry"]
        Finite numbers, at least one in a row.

    Examples
    --------
    >>> sparsemax(torch.tensor([[1.0, 0.8, 0.1]])).round(decimals=4).tolist()
    [[0.6000000238418579, 0.4000000059604645, 0.0]]

    References
    ----------
    martins2016sparsemax
    """
    centred = z - z.detach().amax(1, keepdim=True)
    most = int((centred > -1).sum(1).max())
    ordered = centred.topk(most, dim=1).values
    count = torch.arange(1, most + 1, dtype=z.dtype, device=z.device)
    excess = ordered.cumsum(1) - 1
    kept = (count * ordered > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, kept - 1) / kept
    return (centred - threshold).clamp(min=0.0)
