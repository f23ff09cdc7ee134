"""Paired gains: the sign test of rows that got better or worse, and one gain for each group."""

from typing import cast

import torch
from jaxtyping import Float, Int
from scipy.special import bdtrc  # pyright: ignore
from torch import Tensor


def sign_test(better: int, worse: int) -> float:
    """Return the p-value that ``better`` or more rows gain where gains are as likely as losses.

    It is 1 if no row changed. Rows that neither gain nor lose do not count.

    Parameters
    ----------
    better : int
        Number of rows that gain.
    worse : int
        Number of rows that lose.

    Examples
    --------
    >>> sign_test(4, 0)
    0.0625
    """
    return float(bdtrc(better - 1, better + worse, 0.5))


def group_means(values: Float[Tensor, "row"], group: Int[Tensor, "row"]) -> Float[Tensor, "group"]:
    """Return the mean of each group's rows, groups in ascending order.

    Parameters
    ----------
    values : Float[Tensor, "row"]
        Value of each row.
    group : Int[Tensor, 'row']
        Group of each row.
    """
    _, member = cast(
        tuple[Tensor, Tensor],
        torch.unique(group, return_inverse=True),  # pyright: ignore[reportUnknownMemberType]
    )
    size = torch.bincount(member)
    return values.new_zeros(len(size)).index_add_(0, member, values) / size


def gains_and_losses(
    gain: Float[Tensor, "row"], group: Int[Tensor, "row"] | None = None
) -> tuple[int, int]:
    """Return how many groups (without groups: rows) have a mean gain above 0, and below 0.

    Examples
    --------
    >>> gain, group = torch.tensor([1.0, 1.0, -1.0]), torch.tensor([4, 4, 9])
    >>> gains_and_losses(gain), gains_and_losses(gain, group)
    ((2, 1), (1, 1))
    """
    less = gain if group is None else group_means(gain, group)
    return int((less > 0).sum()), int((less < 0).sum())
