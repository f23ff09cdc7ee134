"""Heavy tails: whether the standard error of a value can be trusted, from the effects of its rows.

Not for detectors of unusual rows: these two questions are about all rows of a sample together.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

FEW_EFFECTS = 4
"""Fewer effective groups than that, behind the variance of a value, are heavy tails."""
COCHRAN = 25
"""Groups for each squared skewness that a mean needs, so that 1.96 errors hold 94 % of means."""
LONG = 3.0
"""Standard errors of normal rows by which the fourth moment of long tails is too large."""
UNITS = 64
"""Units at most whose tails are read."""


def has_heavy_tails(
    effect: Float[Tensor, "row"],
    group: Int[Tensor, "row"],
    sides: Sequence[Float[Tensor, "row _dim"]],
) -> bool:
    """Return whether a few groups, or groups that a sample may lack, decide on a standard error.

    Either the variance of the effects comes from fewer than 4 groups, or the effects are too skewed
    for so few groups (Cochran: ``n < 25 skewness^2``) while the rows have longer tails than normal
    rows: then a sample without its rare rows has too small an error, and nothing else shows it.

    Parameters
    ----------
    effect : Float[Tensor, "row"]
        First-order effect of each sampled row on the value.
    group : Int[Tensor, "row"]
        Group of each row.
    sides : Float[Tensor, "row dim"] of each site
        The sampled rows.

    References
    ----------
    cochran1977sampling
    """
    sums = _group_sums(effect, group)
    if contributing_groups(effect, group) < FEW_EFFECTS:
        return True
    gap = sums - sums.mean()
    variance = gap.square().mean()
    is_skewed = len(sums) * variance**3 < COCHRAN * gap.pow(3).mean().square()
    return bool(is_skewed) and any(has_long_tails(x, len(sums)) for x in sides)


def contributing_groups(effect: Float[Tensor, "row"], group: Int[Tensor, "row"]) -> float:
    """Return the effective number of groups that the variance of the effects comes from.

    ``(sum e^2)^2 / sum e^4`` of the groups' sums: the number of groups over the kurtosis of their
    influences. It is all groups if their effects are equal in size, and 1 if a single group has
    all of the variance.

    Examples
    --------
    >>> contributing_groups(torch.tensor([3.0, -3.0, 3.0, -3.0]), torch.arange(4))
    4.0
    """
    square = _group_sums(effect, group).square()
    largest = float(square.max())
    if not largest > 0:
        return float(len(square))
    shares = square / largest
    return float(shares.sum() ** 2 / shares.square().sum())


def has_long_tails(x: Float[Tensor, "row dim"], n_groups: int) -> bool:
    """Return whether the units' mean fourth moment is larger than that of as many normal groups.

    Of normal rows its variance is ``24 / n`` times the mean of ``r^4`` over all pairs of units,
    with their correlations ``r``: equal units say no more than one.

    Examples
    --------
    >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    >>> has_long_tails(x, 200), has_long_tails(x**3, 200)
    (False, True)
    """
    z = x.detach()[:, :: max(1, x.shape[1] // UNITS)].double().cpu()
    z = z - z.mean(0)
    scale = z.square().mean(0).sqrt()
    z = z[:, scale > 0] / scale[scale > 0]
    if z.numel() == 0 or len(z) < 2:
        return False
    n = len(z)
    excess = float(z.pow(4).mean()) * (n + 1) / (n - 1) - 3.0
    alike = float((z.T @ z / n).pow(4).mean())
    return excess > LONG * (24.0 / n_groups * alike) ** 0.5


def _group_sums(effect: Tensor, group: Tensor) -> Float[Tensor, "group"]:
    """Return the sum of centred effects of each group."""
    _, member = torch.unique(group, return_inverse=True)  # pyright: ignore[reportUnknownMemberType]
    member = cast(Tensor, member)
    centred = effect.double() - effect.double().mean()
    sums = torch.zeros(int(member.max()) + 1, dtype=torch.float64)
    return sums.index_add_(0, member, centred)
