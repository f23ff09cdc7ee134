"""Excess bit rate of one codec over another at equal quality (BD rate)."""

from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator  # pyright: ignore[reportMissingTypeStubs]

from sonde.core.errors import InputError


def bd_rate(
    rates: Any,
    qualities: Any,
    rates2: Any,
    qualities2: Any,
) -> float:
    """Return the mean excess of the second codec's rate, as a fraction of the first codec's rate.

    Both curves of log rate over quality are drawn through their points by monotone cubic pieces;
    the mean is taken over the qualities that both reach (Bjontegaard's difference).

    Parameters
    ----------
    rates, rates2 : array (point,)
        Sizes of whole streams at some settings, headers included, in any unit.
    qualities, qualities2 : array (point,)
        Higher is better, such as decibels or accuracy; no two of a curve are equal.

    Returns
    -------
    float
        0.25 = a quarter more bits; below 0 = fewer.

    Raises
    ------
    InputError
        If the curves share no interval of qualities, or better quality costs fewer bits.

    Examples
    --------
    >>> round(bd_rate([1, 2, 4], [30, 33, 36], [1.5, 3, 6], [30, 33, 36]), 6)
    0.5

    References
    ----------
    bjontegaard2001calculation
    """
    one, two = _curve(rates, qualities), _curve(rates2, qualities2)
    low, high = max(one.x[0], two.x[0]), min(one.x[-1], two.x[-1])
    if not low < high:
        raise InputError(
            f"bd_rate: expected curves with overlapping qualities, got {one.x[0]:g} to "
            f"{one.x[-1]:g} and {two.x[0]:g} to {two.x[-1]:g}. Add settings between."
        )
    gap = float(two.integrate(low, high)) - float(one.integrate(low, high))
    return float(np.expm1(gap / (high - low)))


def _curve(rates: Any, qualities: Any) -> PchipInterpolator:
    rate, quality = np.asarray(rates, float), np.asarray(qualities, float)
    if rate.shape != quality.shape or rate.ndim != 1 or len(rate) < 2:
        raise InputError(
            "bd_rate: expected at least two points per curve, with as many rates as qualities, "
            f"got rates of shape {rate.shape} and qualities of shape {quality.shape}."
        )
    order = np.argsort(quality)
    rate, quality = rate[order], quality[order]
    if not (rate > 0).all() or not (np.diff(quality) > 0).all() or not (np.diff(rate) > 0).all():
        raise InputError(
            "bd_rate: expected rates above 0 that rise with the quality, got "
            f"{rate.tolist()} at {quality.tolist()}. Leave out settings that cost more for less."
        )
    return PchipInterpolator(quality, np.log(rate))
