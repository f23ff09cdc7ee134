"""Maximise the information about a symbol in a message of bounded entropy.

For messages that must be cheap, or fit into choices that look random: couple the message with these
by ``sonde.measure.minimum_entropy_coupling``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.core.tensors import as_tensor

EXHAUSTIVE, BEAMED, MOST_GROWN = 8, 64, 8
Cells = tuple[tuple[int, ...], ...]


@final
@dataclass(frozen=True)
class BoundedCode:
    """A message for each symbol, random for at most one symbol.

    Parameters
    ----------
    channel : Float[Tensor, "symbol message"]
        Probability of each message given the symbol.
    entropy : float
        Entropy of the message, in nats.
    information : float
        Information of the message about the symbol, in nats.
    """

    channel: Float[Tensor, "symbol message"]
    entropy: float
    information: float

    def send(self, symbols: Int[Tensor, "n"], seed: int = 0) -> Int[Tensor, "n"]:
        """Return the messages of symbols."""
        draw = torch.Generator().manual_seed(seed)
        return torch.multinomial(self.channel[symbols], 1, generator=draw)[:, 0]


@final
@dataclass(frozen=True)
class EntropyBoundedCoder:
    """Merge symbols into messages of entropy within a rate, at maximal information.

    For a fixed message of each symbol, the information is the entropy of the message. Up to 8
    symbols all partitions are tried; up to 64 the ``beam`` partitions of largest entropy are
    followed while cells are merged, above 64 a single partition. The rest of the rate is filled at
    random: one symbol of a merged cell gets its own message, with the probability that fills the
    rate. With ``rule="greedy"`` the two least likely cells are merged until the rate is met, and
    nothing is sent at random.

    Range        ``information <= entropy <= rate``; below the rate by less than the last merge
                 took, at most ``ln 2`` times the mass of the merged cells.
    Cost         O(beam n^3), n symbols; O(n^2 log n) above 64.
    Assumes      the distribution is known.
    Differs      nothing with ``rule="greedy"``, the paper's encoder, which is far from the best
                 where symbols are few; the search, and the part sent at random, are ours.

    Parameters
    ----------
    rate : float
        In nats, from 0.
    beam : int, default=64
        Number of partial codes that the search keeps.
    rule : {"search", "greedy"}, default="search"
        How cells are merged.

    Examples
    --------
    >>> code = EntropyBoundedCoder(rate=0.7).code([0.5, 0.25, 0.25])
    >>> round(code.entropy, 3), round(code.information, 3)
    (0.7, 0.694)

    References
    ----------
    ebrahimi2024mecb
    """

    rate: float
    beam: int = 64
    rule: Literal["search", "greedy"] = "search"
    paper: ClassVar[str] = "ebrahimi2024mecb"

    def __post_init__(self) -> None:
        check_ranges(self, rate=">= 0", beam=">= 1", rule=("search", "greedy"))

    def code(self, p: Any) -> BoundedCode:
        """Return the code for symbols of known probability.

        Parameters
        ----------
        p : array (symbol,)
            Probabilities, or counts, which are divided by their sum.
        """
        mass = as_tensor("EntropyBoundedCoder.code", p, "probabilities").double()
        if mass.ndim != 1 or not len(mass) or not bool((mass >= 0).all()) or not mass.sum() > 0:
            raise InputError(
                "EntropyBoundedCoder.code: expected a 1-d tensor of non-negative probabilities "
                f"or counts, got shape {tuple(mass.shape)} with minimum "
                f"{float(mass.min()) if mass.numel() else 0:g}."
            )
        mass = mass / mass.sum()
        weights = mass.tolist()
        cells = self._partition(weights)
        channel = torch.zeros(len(mass), len(cells), dtype=torch.float64)
        for t, cell in enumerate(cells):
            channel[list(cell), t] = 1.0
        leak = None if self.rule == "greedy" else self._leak(weights, cells)
        if leak is not None:
            symbol, chance = leak
            own = torch.zeros(len(mass), 1, dtype=torch.float64)
            own[symbol] = chance
            channel[symbol] *= 1 - chance
            channel = torch.cat([channel, own], 1)
        joint = mass[:, None] * channel
        entropy = _entropy(joint.sum(0).tolist())
        spent = entropy + _entropy(weights) - _entropy(joint.flatten().tolist())
        return BoundedCode(channel, entropy, max(0.0, spent))

    def _partition(self, p: list[float]) -> Cells:
        """Return the partition of largest entropy that was found within the rate."""
        if _entropy(p) <= self.rate:
            return tuple((i,) for i in range(len(p)))
        if self.rule == "greedy":
            return self._greedy(p)
        if len(p) <= EXHAUSTIVE:
            fitting = (c for c in partitions(len(p)) if _of(p, c) <= self.rate + 1e-12)
            return max(fitting, key=lambda c: _of(p, c))
        beam = self.beam if len(p) <= BEAMED else 1
        best: tuple[float, Cells] = (0.0, (tuple(range(len(p))),))
        live = {tuple((i,) for i in range(len(p))): _entropy(p)}
        while live:
            grown: dict[Cells, float] = {}
            for cells, entropy in live.items():
                left, right, after = _merges(p, cells, entropy)
                fits = np.flatnonzero(after <= self.rate)
                if len(fits) and after[fits].max() > best[0]:
                    k = fits[after[fits].argmax()]
                    best = (float(after[k]), _merged(cells, int(left[k]), int(right[k])))
                above = np.flatnonzero(after > self.rate)
                for k in above[np.argsort(-after[above], kind="stable")[:MOST_GROWN]]:
                    grown.setdefault(_merged(cells, int(left[k]), int(right[k])), float(after[k]))
            live = dict(sorted(grown.items(), key=lambda item: -item[1])[:beam])
        return best[1]

    def _greedy(self, p: list[float]) -> Cells:
        """Return the cells after the two least likely ones are merged until the rate is met."""
        heap: list[tuple[float, tuple[int, ...]]] = [(mass, (i,)) for i, mass in enumerate(p)]
        heapify(heap)
        while _entropy([mass for mass, _ in heap]) > self.rate:
            (a, left), (b, right) = heappop(heap), heappop(heap)
            heappush(heap, (a + b, (*left, *right)))
        return tuple(sorted(tuple(sorted(cell)) for _, cell in heap))

    def _leak(self, p: list[float], cells: Cells) -> tuple[int, float] | None:
        """Return the symbol whose separate message adds most information, and its probability."""
        before = _of(p, cells)
        best: tuple[float, int, float] | None = None
        for cell in cells:
            whole = sum(p[i] for i in cell)
            for i in cell if len(cell) > 1 else ():
                moved = self._filled(before, whole, min(p[i], whole / 2))
                if moved <= 0:
                    continue
                leaked = before + _term(whole - moved) + _term(moved) - _term(whole)
                leaked -= p[i] * _entropy([moved / p[i], 1 - moved / p[i]])
                if leaked > max(before, best[0] if best else 0.0):
                    best = (leaked, i, moved / p[i])
        return None if best is None else best[1:]

    def _filled(self, before: float, whole: float, most: float) -> float:
        """Return the mass that a cell gives to a new cell so that the entropy equals the rate."""
        low, high = 0.0, most
        for _ in range(100):
            middle = (low + high) / 2
            entropy = before + _term(whole - middle) + _term(middle) - _term(whole)
            low, high = (middle, high) if entropy <= self.rate else (low, middle)
        return low


def partitions(n: int) -> Iterator[Cells]:
    """Yield every partition of the numbers below ``n`` into cells."""
    if n == 0:
        yield ()
        return
    for cells in partitions(n - 1):
        yield (*cells, (n - 1,))
        for i, cell in enumerate(cells):
            yield (*cells[:i], (*cell, n - 1), *cells[i + 1 :])


def _merges(
    p: list[float], cells: Cells, entropy: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs of cells, and the entropy after each pair is merged."""
    mass = np.array([sum(p[i] for i in cell) for cell in cells])
    left, right = np.triu_indices(len(cells), 1)
    terms = -mass * np.log(np.maximum(mass, 1e-300))
    joined = mass[left] + mass[right]
    after = entropy - terms[left] - terms[right] - joined * np.log(np.maximum(joined, 1e-300))
    return left, right, after


def _merged(cells: Cells, i: int, j: int) -> Cells:
    rest = [cell for k, cell in enumerate(cells) if k not in (i, j)]
    return tuple(sorted([*rest, tuple(sorted(cells[i] + cells[j]))]))


def _of(p: list[float], cells: Cells) -> float:
    return _entropy([sum(p[i] for i in cell) for cell in cells])


def _entropy(masses: list[float]) -> float:
    return sum(map(_term, masses))


def _term(mass: float) -> float:
    return -mass * float(np.log(mass)) if mass > 0 else 0.0
