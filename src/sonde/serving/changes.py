"""Detect when the traffic changes, and where: scores, answers, columns, repeated inputs.

A change is one event: its first alarm is kept, later alarms add their places, and it ends when an
operator acknowledges it or when the traffic looks again like the calibration.
"""

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.by_input import calibration_of
from sonde.serving.callers import Callers
from sonde.serving.class_shares import ClassShares
from sonde.serving.still_inputs import RUN, FrozenColumns, Repetitions
from sonde.serving.unusual_columns import scales_in
from sonde.serving.verdicts import Verdict
from sonde.serving.watched_scores import (
    FEWEST,
    KEPT,
    LONGEST,
    RECENT,
    WatchedScores,
    reference_scores,
)

PATIENCE = 1_000_000
MOST = 100
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
    caller : bytes
        Hash of the caller's name, by which its bursts are known; empty if it has none.
    """

    content: bytes = b""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    answer: Any = None
    probability: float | None = None
    caller: bytes = b""


class Changes:
    """Change detectors for the scores of a probe, the answers and the inputs themselves.

    Without a change, the chance of a false alarm among the next ``n`` distinct inputs is at most
    ``n / patience`` over all detectors together. An input that equals one of the last thousand is
    a repetition and counts once: copies and bursts of one request are not exchangeable. Of callers
    that are named, one that asks more than usual counts as often as usual.

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
    callers : Callers
    """

    def __init__(self, fitted: Fitted, patience: float = PATIENCE) -> None:
        keys, scales = [*fitted.scorers], scales_in(fitted)
        names = [name for name, (_, scale) in scales.items() if scale > 0][:COLUMNS]
        values = {name: (VALUES, f"column {name}") for name in names}
        learnt = (CONFIDENCE, ANSWERS, REFUSED, *values.values())
        each = patience * (len(keys) + len(learnt))
        self.keys, self._values = tuple(keys), values
        self._watched: dict[Key, WatchedScores] = {}
        for i, key in enumerate(keys):
            scores = reference_scores(calibration_of(fitted, key), KEPT, seed=i)
            self._watched[key] = WatchedScores(scores, each, i)
        for i, key in enumerate(learnt):  # compared with earlier traffic
            self._watched[key] = WatchedScores(np.zeros(0), each, len(keys) + i, key == ANSWERS)
        self.events: list[Event] = []
        self.n = 0
        self.repetitions, self.callers = Repetitions(), Callers()
        self._columns = FrozenColumns(scales)
        self._frozen: set[Key] = set()
        self._classes = ClassShares(RECENT)
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
        self,
        contents: Sequence[bytes],
        about: Sequence[str],
        at: float,
        callers: Sequence[bytes] | None = None,
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
        callers : sequence of bytes, optional
            A hash of the name of each input's caller.
        """
        alarms: list[ChangeAlarm] = []
        with self._lock:
            each = zip(contents, about, callers or [b""] * len(contents), strict=True)
            for content, column, caller in each:
                number, self.n = self.n, self.n + 1
                if self.callers.is_joined(caller) or self.repetitions.add(content):
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
            for key, watched in self._watched.items():
                if len(watched.recent) < FEWEST:
                    continue
                if key == ANSWERS:  # its scores are ranks, which stay uniform
                    self._classes.learn()
                    watched.forget()
                else:
                    watched.learn()
            return self._end(at, "acknowledged")

    def state(self) -> dict[str, Any]:
        """Return the events and counts as JSON values."""
        with self._lock:
            return {
                "n": self.n,
                "repeated": self.repetitions.n_repeated,
                "joined": self.callers.n_joined,
                "events": [asdict(event) for event in self.events],
            }

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
            self.repetitions.n_repeated += int(state.get("repeated", 0))
            self.callers.n_joined += int(state.get("joined", 0))

    def _one(
        self, each: Mapping[Key, tuple[float, float | None]], seen: Seen, at: float
    ) -> list[ChangeAlarm]:
        number, self.n = self.n, self.n + 1
        if self.callers.is_joined(seen.caller):
            return []
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
            scores[ANSWERS] = self._rank_of(str(seen.answer))
        for key, score in scores.items():
            began = self._watched[key].update(score, number, at)
            if began is not None:
                alarms.append(ChangeAlarm(*key, began[0], number, began[1], at))
        return alarms

    def _rank_of(self, answer: str) -> float:
        """Return the rank of a class by its frequency among answers before a change."""
        watched = self._watched[ANSWERS]
        if watched.n >= LONGEST:  # the detector restarts, too
            self._classes.thin(KEPT)
        return self._classes.rank(answer, not watched.has_changed)

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
