"""Confidence intervals for a fraction of successes."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.special import betaincinv, ndtri, stdtrit

from sonde.core.errors import InputError
from sonde.core.few_groups import effective_groups


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a fraction.

    Parameters
    ----------
    successes : int
        Number of trials that succeeded.
    n : int
        Number of trials.
    level : float, default=0.95
        Coverage of the interval, in (0, 1).

    Examples
    --------
    >>> low, high = wilson(8, 10)
    >>> f"{low:.4f} {high:.4f}"
    '0.4902 0.9433'

    References
    ----------
    wilson1927probable
    """
    _check("wilson", successes, n, level)
    z = float(ndtri((1 + level) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == n else centre + half


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a fraction, with coverage of at least ``level``.

    Parameters
    ----------
    successes : int
        Number of trials that succeeded.
    n : int
        Number of trials.
    level : float, default=0.95
        Coverage of the interval, in (0, 1).

    References
    ----------
    clopper1934use
    """
    _check("clopper_pearson", successes, n, level)
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def error_if_all_agree(n: float) -> float:
    """Return a standard error for a fraction of 0 or 1 among ``n`` independent rows or groups.

    Their spread is 0. The error is the one that reaches the end of the exact interval at 95 %.
    Groups of uneven sizes count by their effective number, rounded down.

    Parameters
    ----------
    n : float
        Number of independent rows or groups.

    Examples
    --------
    >>> round(error_if_all_agree(60), 4)
    0.0304
    """
    return clopper_pearson(0, int(n))[1] / float(ndtri(0.975))


def grouped_share(
    hits: Bool[np.ndarray, "row"], group: Int[np.ndarray, "row"], level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of a fraction of grouped rows, by their effective number.

    This is the exact interval for the number of independent rows whose share would vary as much as
    the observed share varies between groups; without groups it is the exact interval of all rows.
    If no row or every row is a hit, a group counts as one row.

    Parameters
    ----------
    hits : Bool[np.ndarray, "row"]
        Whether each row counts.
    group : Int[np.ndarray, "row"]
        Numbers 0 to G - 1; every number has rows.
    level : float, default=0.95
        Coverage of the interval, in (0, 1).

    Examples
    --------
    >>> one, alike = np.arange(100), np.arange(100) // 10
    >>> rows = np.arange(100) < 10
    >>> [round(end, 2) for end in (*grouped_share(rows, one), *grouped_share(rows, alike))]
    [0.05, 0.18, 0.0, 0.54]

    References
    ----------
    korn1998confidence
    """
    n, n_hits = len(hits), int(hits.sum())
    each, sizes = np.bincount(group, hits), np.bincount(group)
    n_groups, share, tail = len(sizes), n_hits / n, (1 - level) / 2
    if n_groups == n:
        return clopper_pearson(n_hits, n, level)
    if n_groups == 1:
        return 0.0, 1.0
    if n_hits in (0, n):
        return clopper_pearson(n_groups if n_hits else 0, n_groups, level)
    variance = float((np.square(each - share * sizes) / (1 - sizes / n)).sum()) / n**2
    freedom = effective_groups(torch.from_numpy(sizes)) - 1
    heavier = (float(stdtrit(n - 1, tail)) / float(stdtrit(freedom, tail))) ** 2
    worth = n if variance == 0 else min(n, heavier * share * (1 - share) / variance)
    low = float(betaincinv(share * worth, worth - share * worth + 1, tail))
    high = float(betaincinv(share * worth + 1, worth - share * worth, 1 - tail))
    return low, high


def _check(name: str, successes: int, n: int, level: float) -> None:
    if n < 1 or not 0 <= successes <= n or not 0 < level < 1:
        raise InputError(
            f"{name}: expected 0 <= successes <= n with n of at least 1 and a level in (0, 1), "
            f"got {successes} of {n} at {level}."
        )
