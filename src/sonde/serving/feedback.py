"""Accuracy of the model, on inputs with an alarm and on other inputs."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from sonde.serving.class_names import class_index
from sonde.serving.refusals import Refusal
from sonde.serving.served import Answer
from sonde.stats.intervals import clopper_pearson

KEPT = 100_000
ALARMS: tuple[bool | None, ...] = (None, False, True)
NO_ID, EXACT = 0, 2**53
"""The hash of an empty text; and up to which integers are floats without rounding."""


class Feedback:
    """Answers that were given, by id, until the truth arrives.

    Ids and answers are remembered as hashes of 64 bits in arrays of a fixed size, so that long
    answers and many requests take no more memory than the first.

    Parameters
    ----------
    kept : int, default=100,000
        Answers that are remembered; the oldest are forgotten.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept, self._lock, self._next = kept, threading.Lock(), 0
        self._ids = np.full(kept, NO_ID, np.int64)
        self._texts, self._numbers = np.full((2, kept), 0, np.int64)
        self._alarms = np.full(kept, 0, np.int8)
        self._counts: dict[bool | None, list[int]] = {alarm: [0, 0] for alarm in ALARMS}

    def remember(self, ids: Sequence[str], answers: Sequence[Answer]) -> None:
        """Keep the answers to some inputs."""
        with self._lock:
            for name, one in zip(ids, answers, strict=True):
                at, alarm = self._next, None if one.verdict is None else one.verdict.alarm
                self._ids[at], self._alarms[at] = hash(name), ALARMS.index(alarm)
                self._texts[at], self._numbers[at] = _hashes(one.answer)
                self._next = (at + 1) % self._kept

    def take(self, name: Any, truth: Any, classes: Sequence[str] | None = None) -> bool:
        """Record the correct answer to one input; each input counts once.

        Parameters
        ----------
        name : str
            Id of the answer.
        truth : str, int or float
            Name or index of the correct class, or the correct number.
        classes : sequence of str, optional
            Names of a classifier's outputs, by which an index is understood.

        Returns
        -------
        bool
            Whether the model was correct.

        Raises
        ------
        Refusal
            404 for an id that is unknown, was told of before, or is forgotten.
        """
        if not isinstance(name, str) or not isinstance(truth, str | int | float):
            raise Refusal(400, 'Expected {"id": "...", "truth": "the class"}.')
        with self._lock:
            found = np.flatnonzero(self._ids == hash(name))
            if not name or not len(found):
                raise Refusal(
                    404,
                    "No answer with this id is waiting for feedback: each answer accepts "
                    f"feedback once, and only the last {self._kept:,} answers are kept.",
                )
            at = int(found[0])
            self._ids[at] = NO_ID
            index = None if classes is None else class_index(classes, truth)
            text, number = _hashes(truth if index is None or classes is None else classes[index])
            is_right = bool(self._texts[at] == text or self._numbers[at] == number)
            counts = self._counts[ALARMS[self._alarms[at]]]
            counts[0] += is_right
            counts[1] += 1
        return is_right

    def counts(self) -> list[list[int]]:
        """Return correct and all answers for inputs without a verdict, without and with alarm."""
        with self._lock:
            return [[*self._counts[alarm]] for alarm in ALARMS]

    def restore(self, counts: Sequence[Sequence[int]]) -> None:
        """Add the counts of an earlier process."""
        with self._lock:
            for alarm, (n_right, n) in zip(ALARMS, counts, strict=True):
                self._counts[alarm][0] += int(n_right)
                self._counts[alarm][1] += int(n)

    def figures(self) -> dict[str, Any]:
        """Return accuracies with 95 % intervals: of all inputs, with an alarm, and without."""
        with self._lock:
            counts = {alarm: (*pair,) for alarm, pair in self._counts.items()}
        every = (sum(a for a, _ in counts.values()), sum(n for _, n in counts.values()))
        named = {"all": every, "alarms": counts[True], "rest": counts[False]}
        return {name: _share(*pair) for name, pair in named.items()}


def _hashes(answer: Any) -> tuple[int, int]:
    """Return hashes of an answer as text and as a number, so that 3 and 3.0 match."""
    text = number = str(answer)
    if isinstance(answer, float) or (isinstance(answer, int) and abs(answer) <= EXACT):
        number = f"number {answer + 0.0!r}"
    return hash(text), hash(number)


def _share(n_right: int, n: int) -> dict[str, Any]:
    if not n:
        return {"n": 0, "accuracy": None, "low": None, "high": None}
    low, high = clopper_pearson(n_right, n)
    return {"n": n, "accuracy": n_right / n, "low": low, "high": high}
