"""Accuracy of a two-model cascade against the fraction passed to the strong model."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import beta  # pyright: ignore[reportMissingTypeStubs]


@final
@dataclass(frozen=True)
class Cascade:
    """A weak model answers, except that a strong model answers inputs of high doubt.

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
        """Return the accuracy if these fractions of rows, highest doubt first, are passed on."""
        return self._along(self.doubt, np.asarray(shares))

    def oracle(self, shares: Any) -> Float[np.ndarray, "share"]:
        """Return the accuracy if rows that only the strong model answers correctly go first."""
        return self._along(self.strong * 1.0 - self.weak, np.asarray(shares))

    def random(self, shares: Any) -> Float[np.ndarray, "share"]:
        """Return the expected accuracy if random rows are passed on."""
        passed = np.asarray(shares)
        return (1 - passed) * self.weak.mean() + passed * self.strong.mean()

    def gain(self, n_shares: int = 21) -> float:
        """Return the gain of doubt over random routing, as a fraction of the oracle's gain."""
        shares = np.linspace(0, 1, n_shares)
        random = self.random(shares)
        best = (self.oracle(shares) - random).mean()
        return float((self.accuracy(shares) - random).mean() / best) if best > 0 else 0.0

    def at(self, threshold: float) -> tuple[float, float]:
        """Return the fraction of rows with at least this doubt, and the accuracy if passed on."""
        passed = self.doubt >= threshold
        return float(passed.mean()), float(np.where(passed, self.strong, self.weak).mean())

    def threshold(self, keep: float, sure: float | None = None) -> float:
        """Return the highest doubt threshold that keeps a fraction of the strong model's accuracy.

        Parameters
        ----------
        keep : float
            Share of the strong model's accuracy.
        sure : float, optional
            With which confidence the share is kept on new rows. Thresholds are tried from sending
            all rows upward, and the last before the first that fails is taken: trying several then
            costs no confidence. It is -inf if all must be sent. By default the share is kept on
            these rows, which chose.
        """
        order = np.argsort(-self.doubt, kind="stable")
        if sure is None:
            right = self.weak.sum() + np.r_[0, np.cumsum((self.strong * 1.0 - self.weak)[order])]
            k = int(np.flatnonzero(right >= keep * self.strong.sum())[0])
        else:
            loses, wins = (
                np.r_[0, np.cumsum(rows[order][::-1])][::-1]
                for rows in (self.strong & ~self.weak, self.weak & ~self.strong)
            )  # among the rows that are not sent, by how many are
            most = _most_lost(loses, wins, len(order), sure)
            fails = np.flatnonzero(most > (1 - keep) * self.strong.mean())
            k = min(int(fails[-1]) + 1, len(order)) if len(fails) else 0
            if k == len(order):
                return float("-inf")
        return float(self.doubt[order[k - 1]] if k else np.nextafter(self.doubt.max(), np.inf))

    def kept(self, threshold: float, sure: float = 0.95) -> tuple[float, float, float]:
        """Return the fraction of the strong model's accuracy kept, with its exact interval.

        Clopper and Pearson's intervals of what is lost and of what is won, joined by Bonferroni.
        """
        kept = self.doubt < threshold
        loses = int((kept & self.strong & ~self.weak).sum())
        wins = int((kept & self.weak & ~self.strong).sum())
        n, alone = len(kept), max(float(self.strong.mean()), 1e-9)
        most, least = (
            _most_lost(*pair, n, (1 + sure) / 2) for pair in ((loses, wins), (wins, loses))
        )
        return 1 - (loses - wins) / n / alone, 1 - float(most) / alone, 1 + float(least) / alone

    def _along(self, rank: Any, shares: Any) -> Any:
        gained = (self.strong * 1.0 - self.weak)[np.argsort(-rank, kind="stable")]
        right = self.weak.sum() + np.r_[0, np.cumsum(gained)]
        return right[np.rint(shares * len(self.weak)).astype(int)] / len(self.weak)


def _most_lost(loses: Any, wins: Any, n: int, sure: float) -> Any:
    """Return an upper bound on the rate of losses minus wins, from counts among n rows."""
    each = (1 - sure) / 2
    upper = np.where(loses < n, beta.ppf(1 - each, loses + 1, np.maximum(n - loses, 1)), 1.0)
    lower = np.where(wins > 0, beta.ppf(each, np.maximum(wins, 1), n - wins + 1), 0.0)
    return upper - lower
