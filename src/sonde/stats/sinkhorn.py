"""Balanced assignment of rows to columns."""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def balanced_assignment(
    scores: Float[Tensor, "row column"], epsilon: float = 0.05, rounds: int = 50
) -> Float[Tensor, "row column"]:
    """Return each row's fractions over columns, with equal column totals (Sinkhorn).

    ``exp(scores / epsilon)`` with columns and rows scaled in turn; each row sums to 1 at the end.

    Parameters
    ----------
    scores : Float[Tensor, "row column"]
        Score of each row for each column; larger scores get larger fractions.
    epsilon : float, default=0.05
        Lower values give harder assignments.
    rounds : int, default=50
        Three, as is usual, leave columns far from balanced at this ``epsilon``.

    Examples
    --------
    >>> balanced_assignment(torch.tensor([[2.0, 0.0], [2.0, 0.0]])).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    log = scores.double() / epsilon
    for _ in range(rounds):
        log = log - log.logsumexp(0, keepdim=True)
        log = log - log.logsumexp(1, keepdim=True)
    return log.exp().to(scores)
