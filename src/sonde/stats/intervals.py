"""Intervals for a share of successes."""

from scipy.special import betaincinv, ndtri

from sonde.core.errors import InputError


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a share.

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
    """Return the exact interval of a share: it covers at least ``level``, whatever the share.

    References
    ----------
    clopper1934use
    """
    _check("clopper_pearson", successes, n, level)
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def _check(name: str, successes: int, n: int, level: float) -> None:
    if n < 1 or not 0 <= successes <= n or not 0 < level < 1:
        raise InputError(
            f"{name}: expected 0 <= successes <= n with n of at least 1 and a level in (0, 1), "
            f"got {successes} of {n} at {level}."
        )
