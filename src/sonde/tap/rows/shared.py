"""Selections of rows that depend only on sizes."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from sonde.tap.rows.means import WholeMean

MOST_SHARED = 32


class SharedSelections:
    """Selections that depend only on sizes, cached for later forward passes of all threads."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Tensor, ...]] = {}
        self._means: dict[Hashable, WholeMean] = {}

    def _once(self, key: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= MOST_SHARED:
                self._kept.clear()
            kept = self._kept[key] = make()
        return kept

    def mean(self, n: int, length: int, dtype: torch.dtype, device: torch.device) -> WholeMean:
        """Return the ``WholeMean`` over all tokens of ``n`` examples."""
        key = (n, length, dtype, device)
        mean = self._means.get(key)
        if mean is None:
            if len(self._means) >= MOST_SHARED:
                self._means.clear()
            mean = self._means[key] = WholeMean(*key)
        return mean

    def pooled(self, n: int) -> tuple[Tensor, ...]:
        """Return example and position of one row per example; every position is 0."""
        return self._once(("pooled", n), lambda: (torch.arange(n), torch.zeros(n).long()))

    def flat(self, axis: str, n: int, length: int) -> tuple[Tensor, ...]:
        """Return index, example and position of every token in flattened (example, pos) order.

        Tokens of another axis get tensors of their own: rows are joined by their columns.
        """

        def make() -> tuple[Tensor, ...]:
            example = torch.arange(n).repeat_interleave(length)
            return torch.arange(n * length), example, torch.arange(length).repeat(n)

        return self._once((axis, n, length), make)
