"""Inputs of a caller that asks more than usual, which the change detectors do not count.

Inputs of one caller resemble each other, so a burst of them looks like a change of all traffic.
Each caller counts at its usual fraction of the traffic, whatever it sends in between.
"""

from collections import Counter, deque
from collections.abc import Sequence
from hashlib import blake2b
from statistics import median
from typing import Any, final

BLOCK, BLOCKS = 64, 31
"""Inputs of a block, and blocks over whose median the usual fraction of a caller is known."""
SAVED = 2.0
"""Inputs that a caller may send at once after it was silent, in those of one input of another."""


@final
class Callers:
    """Callers with their usual fractions of the traffic.

    The usual fraction ``s`` is the median over the last 31 blocks of 64 inputs, so a burst moves it
    only after a thousand inputs; of a caller in fewer than half of the blocks it is one input in
    each of them. For each input of others a caller may count ``s / (1 - s)`` inputs. Then a burst
    leaves the mixture of callers unchanged, and by the inequality of arithmetic and geometric means
    bets that are fair on the mixture do not gain.

    Attributes
    ----------
    n_joined : int
        Inputs that did not count, because their caller asked more than usual.

    Examples
    --------
    >>> callers, names = Callers(), [b"a", b"b", b"c"] * 100 + [b"a"] * 50
    >>> sum(callers.is_joined(name) for name in names[-50:])
    49
    """

    def __init__(self) -> None:
        self._block = Counter[bytes]()
        self._blocks: deque[Counter[bytes]] = deque(maxlen=BLOCKS)
        self._usual: dict[bytes, float] = {}
        self._saved: dict[bytes, tuple[float, int]] = {}
        self._n = self.n_joined = 0

    def is_joined(self, caller: bytes) -> bool:
        """Add an input; return whether its caller asks more than usual.

        Parameters
        ----------
        caller : bytes
            Name of the caller, or its hash; empty for an input that counts in any case.
        """
        if not caller:
            return False
        share = self._usual.get(caller, 1 / (BLOCK * (len(self._blocks) + 1)))
        rate = share / (1 - share) if share < 1 else float(BLOCK)
        saved, last = self._saved.get(caller, (1.0, self._n))
        saved = min(SAVED * max(1.0, rate), saved + rate * (self._n - last))
        is_joined = share < 1 and saved < 1
        self._n += 1
        self._saved[caller] = (saved - (not is_joined), self._n)
        self.n_joined += is_joined
        self._block[caller] += 1
        if self._block.total() == BLOCK:
            self._end_block()
        return is_joined

    def _end_block(self) -> None:
        self._blocks.append(self._block)
        self._block = Counter()
        n_with = Counter(name for block in self._blocks for name in block)
        n = len(self._blocks)
        self._usual = {name: (k + 1) / (BLOCK * (n + 1)) for name, k in n_with.items()}
        for name, k in n_with.items():
            if 2 * k > n:
                middle = median(block[name] for block in self._blocks)
                self._usual[name] = max(self._usual[name], middle / BLOCK)
        self._saved = {name: one for name, one in self._saved.items() if name in n_with}


def callers_of(
    inputs: Sequence[Any], client: str, field: str | None
) -> tuple[Sequence[Any], list[bytes]]:
    """Return the inputs without the field that names their caller, and a hash of each caller."""
    names = [client] * len(inputs)
    if field is not None:
        given = [one.get(field) if isinstance(one, dict) else None for one in inputs]
        names = [client if name is None else str(name) for name in given]
        inputs = [
            {key: value for key, value in one.items() if key != field}
            if isinstance(one, dict)
            else one
            for one in inputs
        ]
    return inputs, [_hash_of(name) for name in names]


def _hash_of(name: str) -> bytes:
    content = name.encode("utf-8", "surrogatepass")
    return blake2b(content, digest_size=8).digest() if name else b""
