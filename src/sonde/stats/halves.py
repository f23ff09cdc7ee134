"""Standard errors from random halves, for statistics of a sample of rows."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.few_groups import effective_groups, widen_error

HALVES = 20


def random_halves(
    group: Int[Tensor, "row"], n_halves: int = HALVES, seed: int = 0
) -> Bool[Tensor, "half row"]:
    """Return masks of random halves of the groups, drawn without replacement.

    The spread of a figure over halves estimates its standard error on all rows: a half of ``n`` has
    the variance ``2 s^2 / n`` and shares half of it with the whole, so no factor is needed.

    Parameters
    ----------
    group : Int[Tensor, "row"]
        Group of each row; groups stay whole.
    n_halves : int, default=20
        Number of halves.
    seed : int, default=0
        Seed of the draws.
    """
    _, member = torch.unique(group, return_inverse=True)
    n_groups = int(member.max()) + 1 if len(member) else 0
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(n_halves, n_groups, dtype=torch.bool)
    for mask in chosen:
        mask[torch.randperm(n_groups, generator=generator)[: n_groups // 2]] = True
    return chosen[:, member.cpu()]


def half_error(
    values: Float[Tensor, "half *figure"], group: Int[Tensor, "row"]
) -> Float[Tensor, "*figure"]:
    """Return the standard error: the standard deviation over random halves.

    Fewer than 32 groups give few different halves: the error is then widened by Student's t. Groups
    of uneven sizes count as fewer, by their effective number.

    Parameters
    ----------
    values : Float[Tensor, "half *figure"]
        The figure of each half.
    group : Int[Tensor, "row"]
        The group of each row, as the halves were drawn from.
    """
    _, sizes = torch.unique(group, return_counts=True)
    return widen_error(values.double().std(dim=0, correction=1), effective_groups(sizes))
