"""Detect when the traffic changes and at which site, with a change detector for every site."""

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sonde.alarms import ChangeDetector
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.by_input import calibration_of
from sonde.serving.verdicts import Verdict
from sonde.stats import SampledCalibration

PATIENCE = 1_000_000
LONGEST, KEPT = 20_000, 5_000
MOST = 100


@dataclass(frozen=True)
class ChangeAlarm:
    """A change of the traffic.

    Parameters
    ----------
    detector, site : str
        Where the scores moved.
    began, told : int
        Number of the input at which the change seems to have begun, and of the one that told it.
    began_at, told_at : float
        Their times, in seconds since 1970.
    """

    detector: str
    site: str
    began: int
    told: int
    began_at: float
    told_at: float


class _Watched:
    """Scores of a detector at one site, in order of arrival."""

    def __init__(self, detector: ChangeDetector) -> None:
        self.detector, self.n, self.renewals = detector, 0, 0
        self.rise, self.began, self.began_at = 0.0, 0, 0.0
        self.before = 0.0

    def update(self, score: float, number: int, at: float) -> tuple[int, float] | None:
        """Add a score; return where the change began if one is detected.

        The change begins at the score from which on the bets have gained most.
        """
        if self.n >= LONGEST:
            self.renewals += 1
            self.detector, self.n = self.detector.renewed(KEPT, self.renewals), 0
            self.before = self.rise = 0.0
        found = self.detector.update(score)
        self.n += 1
        gain = math.log(found.wealth / (1 + self.before)) if found.wealth > 0 else -math.inf
        if self.rise <= 0:
            self.rise, self.began, self.began_at = 0.0, number, at
        self.rise = max(0.0, self.rise + gain)
        self.before = 0.0 if found.alarm else found.wealth
        if not found.alarm:
            return None
        self.rise = 0.0
        return self.began, self.began_at


class Changes:
    """Change detectors for every detector and site of a probe.

    Without a change, the chance of a false alarm among the next ``n`` inputs is at most
    ``n / patience`` over all sites together. After an alarm a lasting change becomes the new
    normal.

    Parameters
    ----------
    fitted : Fitted
    patience : float, default=1,000,000

    Attributes
    ----------
    alarms : deque of ChangeAlarm
        The last ones.
    n : int
        Inputs seen.
    """

    def __init__(self, fitted: Fitted, patience: float = PATIENCE) -> None:
        keys = [*fitted.scorers]
        each = patience * len(keys)
        self._watched: dict[Key, _Watched] = {}
        for i, key in enumerate(keys):
            scores = reference_scores(calibration_of(fitted, key), KEPT, seed=i)
            self._watched[key] = _Watched(ChangeDetector(scores, patience=each, seed=i))
        self.alarms: deque[ChangeAlarm] = deque(maxlen=MOST)
        self.n = 0
        self._lock = threading.Lock()

    def update(self, verdicts: Sequence[Verdict], at: float) -> list[ChangeAlarm]:
        """Add the verdicts of some inputs, in order; return the alarms that they raise."""
        found: list[ChangeAlarm] = []
        with self._lock:
            for verdict in verdicts:
                found += self._one(verdict.each, at)
        self.alarms.extend(found)
        return found

    def _one(self, each: Mapping[Key, tuple[float, float | None]], at: float) -> list[ChangeAlarm]:
        number, self.n = self.n, self.n + 1
        found: list[ChangeAlarm] = []
        for key, (score, _) in each.items():
            began = self._watched[key].update(score, number, at)
            if began is not None:
                found.append(ChangeAlarm(*key, began[0], number, began[1], at))
        return found


def reference_scores(calibration: Any, most: int, seed: int) -> np.ndarray:
    """Return calibration scores that represent all of them; empty without a calibration.

    Of the largest scores, which are kept apart, as large a fraction is drawn as was kept of the
    others.
    """
    if calibration is None:
        return np.zeros(0)
    rng, found = np.random.default_rng(seed), calibration.scores.double().numpy()
    if isinstance(calibration, SampledCalibration):
        tail = calibration.tail.double().numpy()
        n_others = calibration.n - len(tail)
        kept = len(found) / n_others if n_others else 1.0
        found = np.concatenate([found, rng.permutation(tail)[: round(kept * len(tail))]])
    return rng.permutation(found)[:most]
