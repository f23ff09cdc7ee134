"""Detect when the traffic changes, and where: scores, answers, columns, repeated inputs.

A change is one event: its first alarm is kept, later alarms add their places, and it ends when an
operator acknowledges it or when the traffic looks again like the calibration.
"""

import math
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sonde.alarms import ChangeDetector
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.by_input import calibration_of
from sonde.serving.still_inputs import RUN, FrozenColumns, Repetitions
from sonde.serving.unusual_columns import scales_in
from sonde.serving.verdicts import Verdict
from sonde.stats import SampledCalibration

PATIENCE = 1_000_000
LONGEST, KEPT = 20_000, 5_000
MOST = 100
RECENT, FEWEST = 500, 200
"""Scores that become the new normal when a change is acknowledged, and that a return needs."""
ALIKE = 1.63
"""Largest statistic of Kolmogorov and Smirnov for scores that have returned (level 1 %)."""
LOOK = 50
"""Inputs between two looks at whether the traffic has returned."""
CONFIDENCE, ANSWERS = ("confidence", "answers"), ("class shares", "answers")
REPEATS, REFUSED = ("repeated inputs", "inputs"), ("refused inputs", "inputs")
FROZEN, VALUES = "frozen values", "values"
COLUMNS = 64
"""Columns of a table whose values are compared with earlier ones; each takes 6 microseconds."""
ABOUT = 32
"""Last refused inputs that are looked at; a change names the column that most of them are about."""


@dataclass(frozen=True)
class ChangeAlarm:
    """The first alarm of a change of the traffic.

    Parameters
    ----------
    detector, site : str
        Where the scores moved; for other signs what changed and "answers", "inputs" or "columns".
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


@dataclass(frozen=True)
class Event:
    """A change of the traffic, from its first alarm to its end.

    Parameters
    ----------
    first : ChangeAlarm
        The alarm that opened it.
    places : tuple of (str, str)
        Detector and site of every alarm since, each once.
    ended_at : float or None
        When it ended, in seconds since 1970; None while it lasts.
    ended_by : str
        "acknowledged", "returned", or empty while it lasts.
    """

    first: ChangeAlarm
    places: tuple[Key, ...]
    ended_at: float | None = None
    ended_by: str = ""


@dataclass(frozen=True)
class Seen:
    """What the change detectors read of an answered input.

    Parameters
    ----------
    content : bytes
        Hash of the input, by which repetitions are known; empty if unknown.
    numbers : mapping of str to float
        Columns of a table row.
    answer, probability
        The model's answer and its probability, or None.
    """

    content: bytes = b""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    answer: Any = None
    probability: float | None = None


class _Watched:
    """Scores of a detector at one site, in order of arrival."""

    def __init__(self, scores: np.ndarray, patience: float, seed: int) -> None:
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
        verdict = self.detector.update(score)
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


class Changes:
    """Change detectors for the scores of a probe, the answers and the inputs themselves.

    Without a change, the chance of a false alarm among the next ``n`` distinct inputs is at most
    ``n / patience`` over all detectors together. An input that equals one of the last thousand is
    a repetition and counts once: copies and bursts of one request are not exchangeable.

    Parameters
    ----------
    fitted : Fitted
    patience : float, default=1,000,000

    Attributes
    ----------
    keys : tuple of (str, str)
        Detector and site of each score.
    events : list of Event
        The first hundred and the last one.
    n : int
        Inputs seen, with repetitions.
    repetitions : Repetitions
    """

    def __init__(self, fitted: Fitted, patience: float = PATIENCE) -> None:
        keys, scales = [*fitted.scorers], scales_in(fitted)
        names = [name for name, (_, scale) in scales.items() if scale > 0][:COLUMNS]
        values = {name: (VALUES, f"column {name}") for name in names}
        learnt = (CONFIDENCE, ANSWERS, REFUSED, *values.values())
        each = patience * (len(keys) + len(learnt))
        self.keys, self._values = tuple(keys), values
        self._watched: dict[Key, _Watched] = {}
        for i, key in enumerate(keys):
            scores = reference_scores(calibration_of(fitted, key), KEPT, seed=i)
            self._watched[key] = _Watched(scores, each, i)
        for i, key in enumerate(learnt):  # compared with earlier traffic
            self._watched[key] = _Watched(np.zeros(0), each, len(keys) + i)
        self.events: list[Event] = []
        self.n = 0
        self.repetitions = Repetitions()
        self._columns = FrozenColumns(scales)
        self._frozen: set[Key] = set()
        self._classes: dict[str, int] = {}
        self._refused: deque[str] = deque(maxlen=ABOUT)
        self._lock = threading.Lock()

    @property
    def alarms(self) -> list[ChangeAlarm]:
        """The first alarm of every event."""
        return [event.first for event in self.events]

    @property
    def current(self) -> Event | None:
        """The change that lasts, or None."""
        last = self.events[-1] if self.events else None
        return last if last is not None and last.ended_at is None else None

    def update(
        self, verdicts: Sequence[Verdict], at: float, seen: Sequence[Seen] | None = None
    ) -> list[ChangeAlarm]:
        """Add some inputs, in order; return the alarms that opened an event."""
        alarms: list[ChangeAlarm] = []
        with self._lock:
            for verdict, one in zip(verdicts, seen or [Seen()] * len(verdicts), strict=True):
                alarms += self._take(self._one(verdict.each, one, at), at)
        return alarms

    def refuse(
        self, contents: Sequence[bytes], about: Sequence[str], at: float
    ) -> list[ChangeAlarm]:
        """Add inputs that were refused; return the alarms that opened an event.

        Parameters
        ----------
        contents : sequence of bytes
            A hash of each input.
        about : sequence of str
            The column for which each input was refused, else empty.
        at : float
            Their time, in seconds since 1970.
        """
        alarms: list[ChangeAlarm] = []
        with self._lock:
            for content, column in zip(contents, about, strict=True):
                number, self.n = self.n, self.n + 1
                if self.repetitions.add(content):
                    continue
                self._refused.append(column)
                began = self._watched[REFUSED].update(1.0, number, at)
                if began is not None:
                    alarm = ChangeAlarm(*self._refusal(), began[0], number, began[1], at)
                    alarms += self._take([alarm], at)
        return alarms

    def _refusal(self) -> Key:
        """Return the name of refused inputs, with the column that most of them lack."""
        column, n = Counter(self._refused).most_common(1)[0]
        return (
            (REFUSED[0], f"column {column}") if column and 2 * n > len(self._refused) else REFUSED
        )

    def acknowledge(self, at: float) -> Event | None:
        """End the change that lasts, and take the most recent traffic as the new normal."""
        with self._lock:
            if self.current is None:
                return None
            for watched in self._watched.values():
                if len(watched.recent) >= FEWEST:
                    watched.learn()
            return self._end(at, "acknowledged")

    def state(self) -> dict[str, Any]:
        """Return the events and counts as JSON values."""
        with self._lock:
            return {"n": self.n, "events": [asdict(event) for event in self.events]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with the events and counts of an earlier process."""
        events = [
            Event(
                ChangeAlarm(**one["first"]),
                tuple((str(a), str(b)) for a, b in one["places"]),
                one["ended_at"],
                one["ended_by"],
            )
            for one in state["events"]
        ]
        with self._lock:
            self.n, self.events = int(state["n"]), [*events, *self.events]

    def _one(
        self, each: Mapping[Key, tuple[float, float | None]], seen: Seen, at: float
    ) -> list[ChangeAlarm]:
        number, self.n = self.n, self.n + 1
        is_repeated = self.repetitions.add(seen.content) if seen.content else False
        frozen: set[Key] = {REPEATS} if self.repetitions.is_still else set()
        if is_repeated:
            frozen |= self._frozen - {REPEATS}
        else:
            still = self._columns.add(seen.numbers)
            frozen |= {(FROZEN, f"column {name}") for name in still}
        new, self._frozen = frozen - self._frozen, frozen
        first = max(0, number - RUN + 1)
        alarms = [ChangeAlarm(*key, first, number, at, at) for key in sorted(new)]
        if is_repeated:
            return alarms
        scores = {key: score for key, (score, _) in each.items()} | {REFUSED: 0.0}
        scores |= {
            key: seen.numbers[name] for name, key in self._values.items() if name in seen.numbers
        }
        if seen.probability is not None:
            scores[CONFIDENCE] = seen.probability
        if seen.answer is not None and not isinstance(seen.answer, float):
            numbers = self._classes
            scores[ANSWERS] = numbers.setdefault(str(seen.answer), min(len(numbers), MOST))
        for key, score in scores.items():
            began = self._watched[key].update(score, number, at)
            if began is not None:
                alarms.append(ChangeAlarm(*key, began[0], number, began[1], at))
        return alarms

    def _take(self, alarms: Sequence[ChangeAlarm], at: float) -> list[ChangeAlarm]:
        """Open an event, or add places to the one that lasts; end it if the traffic is back."""
        opened: list[ChangeAlarm] = []
        for alarm in alarms:
            key, current = (alarm.detector, alarm.site), self.current
            if current is None:
                self.events.append(Event(alarm, (key,)))
                del self.events[MOST:-1]
                opened.append(alarm)
            elif key not in current.places:
                self.events[-1] = replace(current, places=(*current.places, key))
        if self.current is not None and not alarms and self.n % LOOK == 0:
            self._look(self.current, at)
        return opened

    def _look(self, current: Event, at: float) -> None:
        """End an event whose places all look like the calibration again."""
        keys = (REFUSED if key[0] == REFUSED[0] else key for key in current.places)
        held = [self._watched[key] for key in keys if key in self._watched]
        if self._frozen & {*current.places} or not all(one.has_returned for one in held):
            return
        for watched in held:
            watched.forget()
        self._end(at, "returned")

    def _end(self, at: float, how: str) -> Event:
        self.events[-1] = replace(self.events[-1], ended_at=at, ended_by=how)
        return self.events[-1]


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
