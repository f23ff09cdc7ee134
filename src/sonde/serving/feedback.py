"""Accuracy of the model, on inputs with an alarm and on other inputs."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonde.serving.class_names import class_index
from sonde.serving.refusals import Refusal
from sonde.serving.remembered import ALARMS, AnswerRing, others_of
from sonde.serving.served import Answer
from sonde.stats.intervals import clopper_pearson

KEPT = 100_000
SHOWN = 10
"""Classes that a refusal names."""


class Feedback:
    """Answers that were given, by id, until the truth arrives.

    Parameters
    ----------
    kept : int, default=100,000
        Answers that are remembered; the oldest are forgotten.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept, self._lock, self._folder = kept, threading.Lock(), None
        self._answers = AnswerRing(kept)
        self._counts: dict[bool | None, list[int]] = {alarm: [0, 0] for alarm in ALARMS}

    def share(self, folder: Path) -> None:
        """Remember answers in the folder of this replica, where other replicas find them."""
        with self._lock:
            self._folder, self._answers = folder, AnswerRing(self._kept, folder)

    def remember(self, ids: Sequence[str], answers: Sequence[Answer]) -> None:
        """Keep the answers to some inputs."""
        with self._lock:
            self._answers.add(ids, answers)

    def take(self, name: Any, truth: Any, classes: Sequence[str] | None = None) -> bool:
        """Record the correct answer to one input; each input counts once.

        Parameters
        ----------
        name : str
            Id of the answer, which another replica may have given.
        truth : str, int or float
            Name or index of the correct class, or the correct number.
        classes : sequence of str, optional
            Names of a classifier's outputs; a truth is one of them or its index.

        Returns
        -------
        bool
            Whether the model was correct.

        Raises
        ------
        Refusal
            404 for an id that is unknown, was told of before, or is forgotten; 400 for a truth that
            is no class of the model: the id goes on waiting.
        """
        index = _class_of(name, truth, classes)
        with self._lock:
            remembered = self._answers.pop(name)
            if remembered is None and self._folder is not None:
                every = (one.pop(name) for one in others_of(self._folder, self._kept))
                remembered = next((one for one in every if one is not None), None)
            if remembered is None:
                raise Refusal(
                    404,
                    "No answer with this id is waiting for feedback: each answer accepts "
                    f"feedback once, and only the last {self._kept:,} answers are kept.",
                )
            is_right = remembered.equals(
                truth if index is None or classes is None else classes[index]
            )
            counts = self._counts[remembered.alarm]
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

    def figures(self, others: Sequence[Sequence[Sequence[int]]] = ()) -> dict[str, Any]:
        """Return accuracies with 95 % intervals: of all inputs, with an alarm, and without.

        Parameters
        ----------
        others : sequence of counts, optional
            The counts of other replicas.
        """
        each = [sum_of(pairs) for pairs in zip(self.counts(), *others, strict=True)]
        named = {"all": sum_of(each), "alarms": each[ALARMS.index(True)], "rest": each[1]}
        return {name: _share(*pair) for name, pair in named.items()}


def _class_of(name: Any, truth: Any, classes: Sequence[str] | None) -> int | None:
    """Return the index of the class that is meant, or None if the model is no classifier.

    A truth that the model cannot answer would count as a mistake of the model.

    Parameters
    ----------
    name : str
        Id of an answer.
    truth : str, int or float
    classes : sequence of str or None
        Names of a classifier's outputs.

    Raises
    ------
    Refusal
        400 for a truth that is neither a name nor an index of a class.
    """
    is_value = isinstance(truth, str | int | float) and not isinstance(truth, bool)
    if not isinstance(name, str) or not is_value:
        raise Refusal(400, 'Expected {"id": "...", "truth": "the class"}.')
    if classes is None:
        return None
    index = class_index(classes, truth)
    if index is None:
        named, n = ", ".join(classes[:SHOWN]), len(classes)
        listed = f"{named}, ..." if n > SHOWN else named
        raise Refusal(
            400,
            f"Expected as truth the name of one of the model's {n:,} classes ({listed}) or an "
            f"index from 0 to {n - 1}.",
        )
    return index


def sum_of(pairs: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the sums of correct and of all answers."""
    return sum(a for a, _ in pairs), sum(n for _, n in pairs)


def _share(n_right: int, n: int) -> dict[str, Any]:
    if not n:
        return {"n": 0, "accuracy": None, "low": None, "high": None}
    low, high = clopper_pearson(n_right, n)
    return {"n": n, "accuracy": n_right / n, "low": low, "high": high}
