"""Choose the steps of a process to compute; each other step reuses an earlier step's state."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError


def share_steps(similarity: Float[Tensor, "step step"], k: int) -> tuple[list[int], float]:
    """Return the ``k`` steps to compute, and the sum of similarities over all steps.

    A step reuses the state of the last computed step before it. The choice maximises
    ``sum_l similarity[last computed step up to l, l]`` over all choices with step 0, by dynamic
    programming; of equal choices the one with the earliest steps is taken.

    Parameters
    ----------
    similarity : Float[Tensor, "step step"]
        ``similarity[j, l]``: how alike the states of steps j and l are, such as the mean cosine
        over rows; entries below the diagonal are not read.
    k : int
        From 1 to the number of steps.

    Raises
    ------
    InputError
        If there are fewer steps than are to be computed, or a similarity is not finite.

    Examples
    --------
    >>> same = torch.tensor([[1.0, 0.75, 0.1], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]])
    >>> share_steps(same, 2)
    ([0, 2], 2.75)

    References
    ----------
    wang2025ddt
    """
    n = len(similarity)
    if similarity.shape != (n, n) or not 1 <= k <= n:
        raise InputError(
            f"share_steps: expected a square table and k from 1 to its {n} steps, got "
            f"{tuple(similarity.shape)} and k={k}."
        )
    upper = torch.triu(similarity.detach().double().cpu())
    if not bool(torch.isfinite(upper).all()):
        raise InputError("share_steps: expected finite similarities, got NaN or infinity.")
    sums = torch.cat([upper.new_zeros(n, 1), upper.cumsum(1)], 1)
    kept = sums[:, None, :] - sums.diagonal()[:, None, None]  # [a, 0, e]: a computed, up to e
    gain = kept[:, 0]
    best, came = gain[0].clone(), list[list[int]]()
    for _ in range(1, k):
        # a new segment starts at a, after the earlier ones cover the steps before it
        tried = best[:n, None] + gain
        tried = tried.masked_fill(torch.arange(n)[:, None] >= torch.arange(n + 1), -torch.inf)
        tried[0] = -torch.inf
        best, start = tried.max(0)
        came.append(start.tolist())
    starts, end = list[int](), n
    for row in reversed(came):
        end = row[end]
        starts.append(end)
    return [0, *reversed(starts)], round(float(best[n]), 12)
