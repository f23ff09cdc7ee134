"""Moments of classes that are pairs: a label and the value of a second column."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.statistic import Statistic
from sonde.stats import ClassMoments, ClassMomentsState
from sonde.stats.class_moments import Scatter

VALUES = 1 << 20


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


def shape_of(cells: ClassMomentsState) -> tuple[int, int]:
    """Return the numbers of classes and values; some pairs may be missing."""
    parts = cells.labels // VALUES, cells.labels % VALUES
    return len(torch.unique(parts[0])), len(torch.unique(parts[1]))


def _cell(label: Int[Tensor, "row"], value: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """Return an index for each pair of class and value; -1 if either is missing."""
    has_both = (label >= 0) & (value >= 0)
    return torch.where(has_both, label.long() * VALUES + value.long() % VALUES, -1)
