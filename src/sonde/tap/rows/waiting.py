"""Copies of small outputs that are reduced after the forward pass.

A call of torch costs the same for a small tensor as for one that holds a hundred times as much, so
sites of one shape are stacked and reduced together.
"""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from torch import Tensor

from sonde.tap.rows.reduce import Reduction

SMALL_BYTES = 2**18
Who = TypeVar("Who")


class Waiting(Generic[Who]):
    """Outputs grouped by reduction and shape; a ``Who`` names each output."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, tuple[Reduction, list[Who], list[Tensor]]] = {}

    @staticmethod
    def takes(reduction: Reduction, x: Tensor) -> bool:
        """Return whether an output is small and can be stacked with outputs of other sites."""
        return reduction.can_wait and not x.is_nested and x.nbytes <= SMALL_BYTES

    def add(self, who: Who, reduction: Reduction, copy: Tensor) -> None:
        """Store a copy of an output."""
        name = reduction.stack_key, copy.shape, copy.dtype, copy.device
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = reduction, [], []
        group[1].append(who)
        group[2].append(copy)

    def groups(self) -> Iterator[tuple[Reduction, list[Who], list[Tensor]]]:
        """Return all waiting outputs, grouped by shape."""
        groups, self._groups = self._groups, {}
        yield from groups.values()
