"""Moments of classes that are pairs (a label and the value of a second column), and its groups."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.hashing import rank_key
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats import ClassMoments, ClassMomentsState
from sonde.stats.class_moments import Scatter

VALUES = 1 << 20
GROUPS = 192


@final
@dataclass(frozen=True)
class CellMoments(Statistic[ClassMomentsState]):
    """Moments of each class at each value of a column, over rows with both a class and a value.

    Parameters
    ----------
    column : str
        Whole numbers from 0; negative if a row has no value.
    scatter : {"pooled", "trace", "diag", "full"}
        As in ``ClassMoments``.
    """

    column: str
    scatter: Scatter

    def needs(self) -> tuple[str, ...]:
        """Return the rows, their classes and the column."""
        return ("x", "label", self.column)

    def observe(
        self, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"], value: Int[Tensor, "row"]
    ) -> ClassMomentsState:
        """Return the moments of a batch, by pair of class and value."""
        return ClassMoments(self.scatter).observe(x, _cell(label, value))

    def merge(self, a: ClassMomentsState, b: ClassMomentsState) -> ClassMomentsState:
        """Return the joined moments."""
        return ClassMoments(self.scatter).merge(a, b)

    def influence(
        self,
        state: ClassMomentsState,
        gradient: ClassMomentsState,
        x: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"],
        value: Int[Tensor, "row"],
    ) -> Float[Tensor, "row"]:
        """Return each row's influence, as in ``ClassMoments`` with pairs as classes."""
        return ClassMoments(self.scatter).influence(state, gradient, x, _cell(label, value))


@dataclass(frozen=True)
class PartsOfGroupsState(State):
    """The least and the largest value of a column in each of some groups, sorted by group key."""

    key: Int[Tensor, "group"]
    least: Int[Tensor, "group"]
    largest: Int[Tensor, "group"]

    @property
    def n(self) -> int:
        """Number of groups."""
        return len(self.key)

    @property
    def divided(self) -> int:
        """Number of groups with several values."""
        return int((self.least < self.largest).sum())


@final
@dataclass(frozen=True)
class PartsOfGroups(Statistic[PartsOfGroupsState]):
    """Whether groups have rows with several values of a column, for up to ``GROUPS`` groups.

    Parameters
    ----------
    column : str
        Whole numbers from 0; negative if a row has no value.
    """

    column: str

    def needs(self) -> tuple[str, ...]:
        """Return the classes, the column and the sampling key of the group."""
        return ("label", self.column, "group_draw")

    def observe(
        self, label: Int[Tensor, "row"], value: Int[Tensor, "row"], group_draw: Int[Tensor, "row"]
    ) -> PartsOfGroupsState:
        """Return the extremes of each group of a batch."""
        has_both = (label >= 0) & (value >= 0)
        value = value[has_both].long()
        return _extremes(rank_key(group_draw[has_both]), value, value)

    def merge(self, a: PartsOfGroupsState, b: PartsOfGroupsState) -> PartsOfGroupsState:
        """Return the extremes of the groups with the smallest keys."""
        columns = (torch.cat([getattr(s, n) for s in (a, b)]) for n in ("key", "least", "largest"))
        return _extremes(*columns)

    def influence(
        self, state: PartsOfGroupsState, _: PartsOfGroupsState, label: Int[Tensor, "row"],
        *__: Any,
    ) -> Float[Tensor, "row"]:  # fmt: skip
        """Return zeros: extremes of groups raise a flag and change no value."""
        return torch.zeros(len(label), dtype=torch.float64, device=label.device)

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of three numbers for each group."""
        return 24 * GROUPS


def _extremes(
    key: Int[Tensor, "row"], least: Int[Tensor, "row"], largest: Int[Tensor, "row"]
) -> PartsOfGroupsState:
    """Return the least and largest values by key, for the smallest keys."""
    keys, member = torch.unique(key, return_inverse=True)  # pyright: ignore
    low, high = (
        torch.empty_like(keys).scatter_reduce(0, member, x, how, include_self=False)
        for x, how in ((least, "amin"), (largest, "amax"))
    )
    return PartsOfGroupsState(keys[:GROUPS], low[:GROUPS], high[:GROUPS])


def shape_of(cells: ClassMomentsState) -> tuple[int, int]:
    """Return the numbers of classes and values; some pairs may be missing."""
    parts = cells.labels // VALUES, cells.labels % VALUES
    return len(torch.unique(parts[0])), len(torch.unique(parts[1]))


def _cell(label: Int[Tensor, "row"], value: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """Return an index for each pair of class and value; -1 if either is missing."""
    has_both = (label >= 0) & (value >= 0)
    return torch.where(has_both, label.long() * VALUES + value.long() % VALUES, -1)
