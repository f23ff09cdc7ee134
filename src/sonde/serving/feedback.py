"""How often the model was correct, among alarms and among the other inputs."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from sonde.serving.refusals import Refusal
from sonde.serving.served import Answer
from sonde.stats.intervals import clopper_pearson

KEPT = 100_000


class Feedback:
    """Answers that were given, by id, until the truth arrives.

    Parameters
    ----------
    kept : int, default=100,000
        Answers that are remembered; the oldest are forgotten.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept, self._lock = kept, threading.Lock()
        self._given: OrderedDict[str, tuple[Any, bool | None]] = OrderedDict()
        self._counts: dict[bool | None, list[int]] = {True: [0, 0], False: [0, 0], None: [0, 0]}

    def remember(self, ids: Sequence[str], answers: Sequence[Answer]) -> None:
        """Keep the answers to some inputs."""
        with self._lock:
            for name, one in zip(ids, answers, strict=True):
                alarm = None if one.verdict is None else one.verdict.alarm
                self._given[name] = (one.answer, alarm)
            while len(self._given) > self._kept:
                self._given.popitem(last=False)

    def take(self, name: Any, truth: Any) -> bool:
        """Count the truth about one input; each input counts once.

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
            if name not in self._given:
                raise Refusal(
                    404,
                    f"No answer with this id waits for its truth: each is taken once, and the last "
                    f"{self._kept:,} are remembered.",
                )
            answer, alarm = self._given.pop(name)
            is_right = answer == truth or str(answer) == str(truth)
            self._counts[alarm][0] += is_right
            self._counts[alarm][1] += 1
        return is_right

    def figures(self) -> dict[str, Any]:
        """Return the accuracy with its 95 % interval: of all, among alarms, among the rest."""
        with self._lock:
            counts = {alarm: (*pair,) for alarm, pair in self._counts.items()}
        every = (sum(a for a, _ in counts.values()), sum(n for _, n in counts.values()))
        named = {"all": every, "alarms": counts[True], "rest": counts[False]}
        return {name: _share(*pair) for name, pair in named.items()}


def _share(n_right: int, n: int) -> dict[str, Any]:
    if not n:
        return {"n": 0, "accuracy": None, "low": None, "high": None}
    low, high = clopper_pearson(n_right, n)
    return {"n": n, "accuracy": n_right / n, "low": low, "high": high}
