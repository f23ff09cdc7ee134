"""Counts of a layer's patterns, with every unit cut into bins."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import splitmix64
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats.histogram import check_labels


@dataclass(frozen=True)
class SymbolsState(State):
    """Counts of patterns (64-bit hash, ascending) by class; ``n`` rows were counted.

    Where ``saturated``, only the patterns of smallest hash are here: a uniform sample of patterns
    with exact counts.
    """

    n: int
    saturated: int
    symbols: Int[Tensor, "symbol"]
    counts: Int[Tensor, "symbol class"]


@final
@dataclass(frozen=True, eq=False)
class Symbols(Statistic[SymbolsState]):
    """Counts of the rows' patterns after each unit is cut at the edges.

    Two patterns share a hash with a probability of about ``patterns**2 / 2**65``.

    Parameters
    ----------
    edges : Float[Tensor, "edge"] or Float[Tensor, "dim edge"]
        Inner edges in ascending order, for all units or for each.
    classes : int or None, default=None
        Count each label in ``0 .. classes - 1`` apart; rows with label -1 are left out.
    max_symbols : int, default=2**20
        With more patterns only those of smallest hash are kept, and the state says ``saturated``.
    """

    edges: Float[Tensor, "edge"] | Float[Tensor, "dim edge"]
    classes: int | None = None
    max_symbols: int = 2**20

    def __post_init__(self) -> None:
        if self.edges.shape[-1] < 1 or not bool((self.edges.diff(dim=-1) > 0).all()):
            raise InputError("Symbols: expected at least one edge, in ascending order.")

    def needs(self) -> tuple[str, ...]:
        """Return the rows, and the label if classes are counted separately."""
        return ("x",) if self.classes is None else ("x", "label")

    def observe(
        self, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"] | None = None
    ) -> SymbolsState:
        """Return the counts of a batch."""
        n_classes = self.classes or 1
        if label is None or self.classes is None:
            label = torch.zeros(len(x), dtype=torch.int64)
        label = check_labels(label.cpu(), n_classes, "Symbols")
        x, label = x.detach().cpu()[label >= 0], label[label >= 0]
        symbols, index = torch.unique(self._hash(x), return_inverse=True)
        counts = torch.bincount(index * n_classes + label, minlength=len(symbols) * n_classes)
        return self._capped(len(x), 0, symbols, counts.reshape(-1, n_classes))

    def merge(self, a: SymbolsState, b: SymbolsState) -> SymbolsState:
        """Return the joined counts."""
        symbols, index = torch.unique(torch.cat([a.symbols, b.symbols]), return_inverse=True)
        counts = a.counts.new_zeros(len(symbols), a.counts.shape[1])
        counts.index_add_(0, index, torch.cat([a.counts, b.counts]))
        return self._capped(a.n + b.n, max(a.saturated, b.saturated), symbols, counts)

    def _hash(self, x: Float[Tensor, "row dim"]) -> Int[Tensor, "row"]:
        edges = self.edges.double()
        if edges.ndim == 1:
            bins = torch.bucketize(x.double(), edges, right=True)
        else:
            bins = torch.searchsorted(edges.contiguous(), x.double().T.contiguous(), right=True).T
        weights = torch.from_numpy(
            splitmix64(np.arange(x.shape[1], dtype=np.uint64)).view(np.int64)
        )
        mixed = ((bins + 1) * weights).sum(1)
        return torch.from_numpy(splitmix64(mixed.numpy().view(np.uint64)).view(np.int64))

    def _capped(
        self,
        n: int,
        saturated: int,
        symbols: Int[Tensor, "symbol"],
        counts: Int[Tensor, "symbol class"],
    ) -> SymbolsState:
        if len(symbols) > self.max_symbols:
            saturated = 1
            symbols, counts = symbols[: self.max_symbols], counts[: self.max_symbols]
        return SymbolsState(n, saturated, symbols, counts)
