"""Which of two models should answer? Accuracy of a cascade against the share that is passed on."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float


@final
@dataclass(frozen=True)
class Cascade:
    """A weak model answers, and a strong model where the weak model's doubt is high.

    Parameters
    ----------
    weak, strong : bool array (row,)
        Which rows each model answers right.
    doubt : array (row,)
        Higher = passed on first.

    Examples
    --------
    >>> import numpy as np
    >>> weak, strong = np.array([1, 0, 1, 0]) > 0, np.ones(4) > 0
    >>> cascade = Cascade(weak, strong, doubt=np.array([0.1, 0.9, 0.2, 0.8]))
    >>> cascade.accuracy([0.0, 0.5, 1.0]).tolist(), cascade.gain(), cascade.at(0.5)
    ([0.5, 1.0, 1.0], 1.0, (0.5, 1.0))
    """

    weak: Bool[np.ndarray, "row"]
    strong: Bool[np.ndarray, "row"]
    doubt: Float[np.ndarray, "row"]

    def accuracy(self, shares: Any) -> Float[np.ndarray, "share"]:
        """Return the accuracy if these shares of the rows, highest doubt first, are passed on."""
        return self._along(self.doubt, np.asarray(shares))

    def oracle(self, shares: Any) -> Float[np.ndarray, "share"]:
        """Return the accuracy if rows that only the strong model gets right are passed on first."""
        return self._along(self.strong * 1.0 - self.weak, np.asarray(shares))

    def random(self, shares: Any) -> Float[np.ndarray, "share"]:
        """Return the expected accuracy where rows are passed on at random."""
        passed = np.asarray(shares)
        return (1 - passed) * self.weak.mean() + passed * self.strong.mean()

    def gain(self, n_shares: int = 21) -> float:
        """Return what doubt gains over random routing, as a share of what the oracle gains."""
        shares = np.linspace(0, 1, n_shares)
        random = self.random(shares)
        best = (self.oracle(shares) - random).mean()
        return float((self.accuracy(shares) - random).mean() / best) if best > 0 else 0.0

    def at(self, threshold: float) -> tuple[float, float]:
        """Return the share that is passed on from this doubt upward, and the accuracy."""
        passed = self.doubt >= threshold
        return float(passed.mean()), float(np.where(passed, self.strong, self.weak).mean())

    def threshold(self, keep: float) -> float:
        """Return the highest threshold of doubt that keeps a share of the strong model's accuracy.

        Parameters
        ----------
        keep : float
            Share of the strong model's accuracy.
        """
        order = np.argsort(-self.doubt, kind="stable")
        right = self.weak.sum() + np.r_[0, np.cumsum((self.strong * 1.0 - self.weak)[order])]
        k = int(np.flatnonzero(right >= keep * self.strong.sum())[0])
        return float(self.doubt[order[k - 1]] if k else np.nextafter(self.doubt.max(), np.inf))

    def _along(self, rank: Any, shares: Any) -> Any:
        gained = (self.strong * 1.0 - self.weak)[np.argsort(-rank, kind="stable")]
        right = self.weak.sum() + np.r_[0, np.cumsum(gained)]
        return right[np.rint(shares * len(self.weak)).astype(int)] / len(self.weak)
