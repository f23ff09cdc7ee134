"""A rate that is linear in the logarithm of a ratio: the fitted line and its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from scipy.stats import chi2

from sonde.core.errors import InputError
from sonde.core.result import Result


@final
@dataclass(frozen=True, kw_only=True)
class LogLinear(Result):
    """The line ``rate = intercept + value log(ratio)``.

    Parameters
    ----------
    intercept, intercept_se : float
        Rate at ratio 1, and its standard error.
    r2 : float
        Share of the weighted variance of the rates that the line explains.
    misfit : float
        Probability of rates at least as far from the line if the line is true; NaN with two bins.
    """

    title: ClassVar[str] = "Rate for each e-fold of the ratio"
    intercept: float
    intercept_se: float
    r2: float
    misfit: float


def log_linear(ratio: Sequence[float], hits: Sequence[int], trials: Sequence[int]) -> LogLinear:
    """Fit the hallucination rate against the logarithm of a popularity ratio.

    Weighted least squares over bins, each weighted by trials over its binomial variance, taken at
    ``(hits + 1/2) / (trials + 1)``. Counts of several runs add up before the fit.

    Parameters
    ----------
    ratio : sequence of float
        Popularity ratio of each bin: how much more often the dominant fact was seen than the rarer
        one, or how much longer or larger something is.
    hits : sequence of int
        Number of hallucinations in each bin.
    trials : sequence of int
        Number of trials in each bin.

    Raises
    ------
    InputError
        If there are fewer than two different ratios, or counts are not valid.

    Examples
    --------
    >>> law = log_linear([1, 10, 100], [100, 200, 300], [1000, 1000, 1000])
    >>> round(law.value * 2.302585, 3), round(law.intercept, 3), round(law.r2, 3)
    (0.1, 0.1, 1.0)

    References
    ----------
    zhang2024overshadowing
    """
    r, k, n = (np.asarray(values, dtype=np.float64) for values in (ratio, hits, trials))
    if r.shape != k.shape or k.shape != n.shape or r.ndim != 1:
        raise InputError(
            f"log_linear: expected a ratio, hits and trials for each bin, got {len(r)}, {len(k)} "
            f"and {len(n)}."
        )
    if (r <= 0).any() or (n <= 0).any() or (k < 0).any() or (k > n).any():
        raise InputError("log_linear: expected ratios above 0 and 0 <= hits <= trials, trials > 0.")
    if (n_ratios := len(np.unique(r))) < 2:
        raise InputError(f"log_linear: expected two different ratios or more, got {n_ratios}.")
    rate, smooth = k / n, (k + 0.5) / (n + 1.0)
    weight = n / (smooth * (1 - smooth))
    x = np.log(r)
    total = weight.sum()
    x_mean, y_mean = weight @ x / total, weight @ rate / total
    spread = weight @ (x - x_mean) ** 2
    slope = weight @ ((x - x_mean) * (rate - y_mean)) / spread
    intercept = y_mean - slope * x_mean
    left = float(weight @ (rate - intercept - slope * x) ** 2)
    around = float(weight @ (rate - y_mean) ** 2)
    return LogLinear(
        value=float(slope),
        se=float(spread**-0.5),
        n=int(n.sum()),
        unit="rate per e-fold",
        direction="higher",
        range=(-math.inf, math.inf),
        intercept=float(intercept),
        intercept_se=float((1 / total + x_mean**2 / spread) ** 0.5),
        r2=1.0 - left / around if around > 0 else 1.0,
        misfit=float(chi2.sf(left, len(r) - 2)) if len(r) > 2 else math.nan,
    )
