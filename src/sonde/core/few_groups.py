"""Standard errors from few groups of rows: Student's t in place of the normal quantile.

The spread over ``G`` groups has ``G - 1`` degrees of freedom. From few groups it is often much too
small by chance, and ``value +- 1.96 se`` would hold the truth too rarely. Errors are therefore
multiplied by ``t(.975, G - 1) / 1.96``: the interval is then Student's. Ends of resampled groups
are stretched by the same law.

Groups of uneven sizes count as fewer: by Kish's number ``(sum n)^2 / sum n^2`` of equal groups. A
group's sum of centred effects is too small if the group holds much of the mean that is subtracted;
its square is divided by one minus the group's fraction of the rows (as in the estimator CR2).

References
----------
kish1965survey
"""

import math
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from scipy.special import ndtri, stdtrit  # pyright: ignore
from torch import Tensor

MANY_GROUPS = 32
"""From so many groups on the factor is below 1.05, and errors are not widened."""
FEW_GROUPS = 8
"""With fewer groups a result has the flag ``few_groups``."""

E = TypeVar("E")


def student_factor(n_groups: float, level: float = 0.95) -> float:
    """Return Student's quantile of an interval over the normal quantile; 1 from 32 groups on.

    Below two groups no error is known, and the factor is 1.

    Examples
    --------
    >>> [round(student_factor(n), 2) for n in (2, 5, 10, 31, 32)]
    [6.48, 1.42, 1.15, 1.04, 1.0]
    """
    if not 2 <= n_groups < MANY_GROUPS:
        return 1.0
    tail = (1 + level) / 2
    return float(stdtrit(n_groups - 1, tail)) / float(ndtri(tail))


def effective_groups(sizes: Shaped[Tensor, "group"]) -> float:
    """Return the number of equal groups that are worth as much: ``(sum n)^2 / sum n^2``.

    Two or more groups are worth two at least: Student's law knows no fewer.

    Examples
    --------
    >>> effective_groups(torch.tensor([20, 20, 20])), effective_groups(torch.tensor([50, 1, 1]))
    (3.0, 2.0)
    """
    n = sizes[sizes > 0].double()
    if len(n) < 2:
        return float(len(n))
    return max(2.0, float(n.sum().square() / n.square().sum()))


def grouped_error(
    sums: Float[Tensor, "group *figure"], sizes: Shaped[Tensor, "group"]
) -> Float[Tensor, "*figure"]:
    """Return the standard error of a sum from the sums over groups of its centred terms.

    Parameters
    ----------
    sums : Float[Tensor, "group *figure"]
        Sum of the centred terms of each group.
    sizes : Tensor (group,)
        Rows of each of two or more groups.

    Examples
    --------
    >>> even = grouped_error(torch.tensor([-0.1, 0.1]), torch.tensor([5, 5]))
    >>> f"{float(even) * 1.959964:.3f}"
    '2.541'
    """
    rest = 1 - sizes.to(sums) / sizes.sum().to(sums)
    squares = sums.square() / rest.view(-1, *[1] * (sums.ndim - 1))
    return widen_error(squares.sum(0).sqrt(), effective_groups(sizes))


def widen_error(error: E, n_groups: float) -> E:
    """Return a standard error from groups so that ``value +- 1.96 error`` is Student's interval.

    Parameters
    ----------
    error : float, Tensor or None
        The spread over groups, for a normal interval; None stays None.
    n_groups : float
        Number of independent groups that it comes from: its degrees of freedom plus one.
    """
    return error if error is None else error * student_factor(n_groups)  # type: ignore[operator]


def widen_ends(
    resampled: Float[Tensor, "resample *place"],
    n_groups: float,
    level: float,
    range: tuple[float, float],
) -> tuple[Float[Tensor, "*place"], Float[Tensor, "*place"]]:
    """Return the ends of the interval of a figure of resampled groups, widened if they are few.

    The percentile interval is that of the resamples. Below 32 groups its ends are moved away from
    the median, each in proportion to its distance, until they are as far apart as those of
    Student's interval. They stay in the figure's range.

    Parameters
    ----------
    resampled : Float[Tensor, "resample *place"]
        Two or more figures of groups that were drawn with replacement.
    n_groups : float
    level : float
    range : (float, float)
        Range of the figure.

    Examples
    --------
    >>> figures = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).repeat_interleave(100)
    >>> ends = [widen_ends(figures, n, 0.95, (0.0, 1.0)) for n in (2, 5, 40)]
    >>> [[round(float(end), 2) for end in both] for both in ends]
    [[0.0, 1.0], [0.25, 0.75], [0.4, 0.6]]
    """
    tail = (1 - level) / 2
    at = torch.tensor([tail, 0.5, 1 - tail], dtype=resampled.dtype)
    low, middle, high = torch.quantile(resampled, at, dim=0)
    if not 2 <= n_groups < MANY_GROUPS:
        return low, high
    error = resampled.std(dim=0) * math.sqrt(n_groups / (n_groups - 1))
    reach = 2 * float(stdtrit(n_groups - 1, 1 - tail)) * error
    stretch = torch.where(high > low, reach / (high - low), 1.0).clamp(min=1.0)
    wide = middle - stretch * (middle - low), middle + stretch * (high - middle)
    return wide[0].clamp(min=range[0]).minimum(low), wide[1].clamp(max=range[1]).maximum(high)
