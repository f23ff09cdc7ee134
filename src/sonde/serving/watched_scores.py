"""Scores in order of arrival, watched for a change and for its end."""

import math
from collections import deque
from typing import Any, final

import numpy as np

from sonde.alarms import ChangeDetector
from sonde.stats import SampledCalibration

LONGEST, KEPT = 20_000, 5_000
"""Scores after which a detector restarts, on as many of them."""
RECENT, FEWEST = 500, 200
"""Scores that become the new normal when a change is acknowledged, and that a return needs."""
ALIKE = 1.63
"""Largest statistic of Kolmogorov and Smirnov for scores that have returned (level 1 %)."""


@final
class WatchedScores:
    """Scores of a detector at one site, in order of arrival.

    Parameters
    ----------
    scores : array
        Calibration scores; if empty, new scores are compared with earlier ones.
    patience : float
        Mean number of scores to a false alarm, at least.
    seed : int
        Seed of the numbers that break ties between scores.
    are_ranks : bool, default=False
        Whether the scores are ranks in (0, 1] already, independent and uniform without a change.
    """

    def __init__(
        self, scores: np.ndarray, patience: float, seed: int, are_ranks: bool = False
    ) -> None:
        self._are_ranks = are_ranks
        self.calibration = np.sort(scores)
        self.first: list[float] = []
        self.detector = ChangeDetector(scores, patience=patience, seed=seed, sides="both")
        self.n = self.renewals = 0
        self.rise, self.began, self.began_at = 0.0, 0, 0.0
        self.before, self.n_first, self.n_since, self.has_changed = 0.0, 0, 0, False
        self.recent: deque[float] = deque(maxlen=RECENT)

    def update(self, score: float, number: int, at: float) -> tuple[int, float] | None:
        """Add a score; return where the change began if one is detected.

        The change begins at the score from which on the bets have gained most.
        """
        if self.n >= LONGEST:
            self._restart(self.detector.renewed(KEPT, self.renewals + 1))
        self.recent.append(score)
        self.n_since += 1
        if len(self.first) < RECENT and not self.has_changed:
            self.first.append(score)
        detector = self.detector
        verdict = detector.update_p(score) if self._are_ranks else detector.update(score)
        self.n += 1
        gain = math.log(verdict.wealth / (1 + self.before)) if verdict.wealth > 0 else -math.inf
        if self.rise <= 0:
            self.rise, self.began, self.began_at = 0.0, number, at
            self.n_first = max(0, len(self.first) - 1)
        self.rise = max(0.0, self.rise + gain)
        self.before = 0.0 if verdict.alarm else verdict.wealth
        if not verdict.alarm:
            return None
        if not self.has_changed:  # changed scores are no reference
            del self.first[self.n_first :]
        self.rise, self.n_since, self.has_changed = 0.0, 0, True
        return self.began, self.began_at

    def _restart(self, detector: ChangeDetector) -> None:
        self.detector, self.n, self.before, self.rise = detector, 0, 0.0, 0.0
        self.renewals += 1

    def learn(self) -> None:
        """Take the most recent scores as the new normal."""
        scores = [*self.recent]
        self._restart(self._on(scores))

    @property
    def reference(self) -> np.ndarray:
        """Scores of traffic without a change: the calibration, else the first scores."""
        return self.calibration if len(self.calibration) else np.sort(self.first)

    def forget(self) -> None:
        """Compare with the calibration again."""
        self.has_changed = False
        self._restart(self._on(self.reference))

    def _on(self, scores: Any) -> ChangeDetector:
        old = self.detector
        seed = self.renewals + 1
        return ChangeDetector(scores, patience=old.patience, seed=seed, sides=old.sides)

    @property
    def has_returned(self) -> bool:
        """True if the scores since the last alarm are distributed like the reference."""
        if self.n_since < FEWEST:
            return False
        last, reference = np.sort([*self.recent][-FEWEST:]), self.reference
        n, m = len(last), len(reference)
        if n < FEWEST or m < FEWEST:
            return False
        every = np.concatenate([last, reference])
        ours, theirs = (np.searchsorted(x, every, "right") / len(x) for x in (last, reference))
        return float(np.abs(ours - theirs).max()) <= ALIKE * math.sqrt(1 / n + 1 / m)


def reference_scores(calibration: Any, most: int, seed: int) -> np.ndarray:
    """Return calibration scores that represent all of them; empty without a calibration.

    Of the largest scores, which are kept apart, as large a fraction is drawn as was kept of the
    others.
    """
    if calibration is None:
        return np.zeros(0)
    rng, scores = np.random.default_rng(seed), calibration.scores.double().numpy()
    if isinstance(calibration, SampledCalibration):
        tail = calibration.tail.double().numpy()
        n_others = calibration.n - len(tail)
        kept = len(scores) / n_others if n_others else 1.0
        scores = np.concatenate([scores, rng.permutation(tail)[: round(kept * len(tail))]])
    return rng.permutation(scores)[:most]
