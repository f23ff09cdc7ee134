"""The cumulative sum of z-scores, for streams that are independent and Gaussian."""

import math
from dataclasses import dataclass
from pathlib import Path

from scipy.special import ndtri

from sonde.alarms._saved import load_watch, save_watch
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.core.state import State

LOWEST = -8.0


@dataclass(frozen=True)
class Cusum(State):
    """``S_t = max(0, S_(t-1) + z_t - slack)``, an alarm at ``S >= limit``; immutable.

    Valid for independent standard normal ``z`` alone: feed ``Cusum.z_of(p)`` of a p-value. With the
    defaults a false alarm comes after about 940 steps, and a shift of one standard deviation is
    seen after about ten.

    Parameters
    ----------
    slack : float, default=0.5
        Half the shift to be detected, in standard deviations.
    limit : float, default=5.0
    value : float, default=0.0
        The sum so far.

    Examples
    --------
    >>> c = Cusum()
    >>> for z in (0.0, 1.2, 0.4, 2.0, 1.5):
    ...     c = c.after(z)
    >>> round(c.value, 6)
    3.1

    References
    ----------
    page1954continuous
    """

    slack: float = 0.5
    limit: float = 5.0
    value: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, slack=">= 0", limit="> 0")

    @property
    def alarm(self) -> bool:
        """True if the sum has reached the limit."""
        return self.value >= self.limit

    def after(self, z: float) -> "Cusum":
        """Return the sum after one more z-score; infinity counts as evidence, NaN is an error."""
        if math.isnan(z):
            raise InputError("Cusum: expected a z-score, got NaN. Score broken rows as +inf.")
        return Cusum(self.slack, self.limit, max(0.0, self.value + z - self.slack))

    def save(self, path: str | Path) -> str:
        """Write the sum with its parameters to one file and return its id."""
        return save_watch(path, "Cusum", self)

    @classmethod
    def load(cls, path: str | Path) -> "Cusum":
        """Read a sum that ``save`` wrote.

        Raises
        ------
        StateError
            If the file is damaged, or of something else.
        """
        return load_watch(path, "Cusum", cls)

    @staticmethod
    def z_of(p: float) -> float:
        """Return the z-score of a p-value: high for small p, and -8 for p = 1.

        The least unusual score has the conformal p-value 1, which must not be infinite evidence.
        """
        if not 0 < p <= 1:
            raise InputError(f"Cusum.z_of: expected a p-value in (0, 1], got {p}.")
        return max(LOWEST, -float(ndtri(p)))
