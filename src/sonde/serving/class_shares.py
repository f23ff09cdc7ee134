"""Ranks of answered classes by their frequency, so that changed class frequencies are detected.

Numbers in the order of first appearance would not do: each new class would get the largest number
so far, and traffic of many classes would look like a trend.
"""

from collections import Counter, deque
from collections.abc import Iterable
from hashlib import blake2b
from typing import final

import numpy as np


@final
class ClassShares:
    """Frequencies of the answered classes so far.

    While nothing changes the ranks are independent and uniform, whatever the classes are and
    however many there are. A class that takes over is soon the most frequent one, with ranks near
    1; ranks of rare classes are near 0.

    Parameters
    ----------
    recent : int
        Number of last answers that can become the new reference.
    seed : int, default=0
        Seed of the numbers that break ties.

    Examples
    --------
    >>> shares = ClassShares(recent=10)
    >>> ranks = [shares.rank(answer) for answer in "aabaaacaaa"]
    >>> min(ranks[7:]) > 0.2 > ranks[6]
    True
    """

    def __init__(self, recent: int, seed: int = 0) -> None:
        self._recent: deque[bytes] = deque(maxlen=recent)
        self._random = np.random.default_rng(seed)
        self._restart(())

    def _restart(self, names: Iterable[bytes]) -> None:
        self._counts = Counter[bytes](names)
        self._n_classes = Counter[int](self._counts.values())
        """Number of classes by count."""
        self._n = self._counts.total()

    def rank(self, answer: str, is_reference: bool = True) -> float:
        """Return the fraction of answers whose class is at most as frequent, with random ties.

        Parameters
        ----------
        answer : str
            The class of the next input.
        is_reference : bool, default=True
            Whether the answer counts for the ranks of later answers.
        """
        name = blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._recent.append(name)
        self._change(name, 1)
        count, u = self._counts[name], 1.0 - self._random.random()
        n_rarer = sum(each * n for each, n in self._n_classes.items() if each < count)
        rank = (n_rarer + u * count * self._n_classes[count]) / self._n
        if not is_reference:
            self._change(name, -1)
        return rank

    def _change(self, name: bytes, step: int) -> None:
        old, new = self._counts[name], self._counts[name] + step
        for count, each in ((old, -1), (new, 1)):
            self._n_classes[count] += each
            if not count or not self._n_classes[count]:
                del self._n_classes[count]
        self._counts[name] = new
        if not new:
            del self._counts[name]
        self._n += step

    def thin(self, n: int) -> None:
        """Keep a random ``n`` of the answers, so that memory stays bounded."""
        names = [*self._counts.elements()]
        chosen = self._random.permutation(len(names))[:n]
        self._restart(names[i] for i in chosen.tolist())

    def learn(self) -> None:
        """Take the last answers as the new reference."""
        self._restart(self._recent)
