"""Inputs that stopped varying: repeated inputs, and columns that hold one value.

A dead feed looks more ordinary than its calibration rows, so that scores alone may not tell it.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping

RUN = 64
"""Inputs in a row with one value of a column. A column whose median absolute deviation is not 0
holds no value in more than half of its rows: the chance of such a run among independent rows is at
most ``2 ** -63`` for each input."""
WINDOW = 1000
"""Inputs among which an equal input counts as a repetition."""
VARIED, STILL = 32, 3
"""Distinct inputs among the last ``RUN`` from which traffic counts as varied, and as still."""


class Repetitions:
    """Inputs that equal one of the last thousand, and traffic that became a repetition.

    Attributes
    ----------
    n_repeated : int
        Inputs that were a repetition.
    is_still : bool
        True if at most three inputs make up the last 64, although traffic was varied before.
    """

    def __init__(self) -> None:
        self._window: deque[bytes] = deque()
        self._counts = Counter[bytes]()
        self._last: deque[bytes] = deque()
        self._last_counts = Counter[bytes]()
        self._was_varied = False
        self.n_repeated, self.is_still = 0, False

    def add(self, content: bytes) -> bool:
        """Add the hash of an input; return whether it is a repetition."""
        is_repeated = self._counts[content] > 0
        self.n_repeated += is_repeated
        _push(content, self._window, self._counts, WINDOW)
        _push(content, self._last, self._last_counts, RUN)
        if len(self._last) == RUN:
            n = len(self._last_counts)
            self._was_varied = self._was_varied or n >= VARIED
            self.is_still = n <= STILL and self._was_varied
        return is_repeated


def _push(content: bytes, window: deque[bytes], counts: Counter[bytes], most: int) -> None:
    """Add an element to a window and to its counts; drop the oldest if there are too many."""
    counts[content] += 1
    window.append(content)
    if len(window) > most:
        old = window.popleft()
        counts[old] -= 1
        if not counts[old]:
            del counts[old]


class FrozenColumns:
    """Columns of a table that hold one value for 64 inputs in a row.

    Parameters
    ----------
    scales : mapping of str to (float, float)
        Median and robust standard deviation of each column; columns with a deviation of 0 may be
        constant.
    """

    def __init__(self, scales: Mapping[str, tuple[float, float]]) -> None:
        self._runs = {name: (math.nan, 0) for name, (_, scale) in scales.items() if scale > 0}

    def add(self, numbers: Mapping[str, float]) -> list[str]:
        """Add a row; return the columns that are frozen."""
        for name, (value, n) in self._runs.items():
            now = numbers.get(name, math.nan)
            self._runs[name] = (now, n + 1 if now == value else 1)
        return [name for name, (_, n) in self._runs.items() if n >= RUN]
