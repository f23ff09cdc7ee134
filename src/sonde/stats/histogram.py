"""Histogram of each unit's values in fixed bins, for all rows or each class."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from sonde.core.columns import COLUMNS
from sonde.core.errors import InputError
from sonde.core.state import State
from sonde.core.statistic import Statistic


@dataclass(frozen=True)
class HistogramState(State):
    """Counts of each unit by bin (and class); ``n_nan`` counts values outside all bins."""

    counts: Int[Tensor, "dim bin"] | Int[Tensor, "dim bin class"]
    n_nan: Int[Tensor, "dim"]

    @property
    def n(self) -> Int[Tensor, "dim"]:
        """Number of counted values of each unit."""
        return self.counts.flatten(1).sum(1)


@final
@dataclass(frozen=True, eq=False)
class Histogram(Statistic[HistogramState]):
    """Counts between fixed edges; the first and last bin are open. Independent of splits.

    Bin ``i`` holds values with ``i`` edges at or below them.

    Parameters
    ----------
    edges : Float[Tensor, "edge"] or Float[Tensor, "dim edge"]
        Inner edges in ascending order, for all units or for each.
    classes : int or None, default=None
        Count each label in ``0 .. classes - 1`` apart; rows with label -1 are left out.
    column : str, default="x"
        What is counted; a column of one number for each row counts as one unit.
    """

    edges: Float[Tensor, "edge"] | Float[Tensor, "dim edge"]
    classes: int | None = None
    column: str = "x"

    def __post_init__(self) -> None:
        if self.edges.shape[-1] < 1 or not bool((self.edges.diff(dim=-1) > 0).all()):
            raise InputError("Histogram: expected at least one edge, in ascending order.")
        if self.column not in COLUMNS or self.column == "head":
            raise InputError(f"Histogram: expected a column of rows, got {self.column!r}.")

    def needs(self) -> tuple[str, ...]:
        """Return the counted column, and the label if classes are counted separately."""
        return (self.column,) if self.classes is None else (self.column, "label")

    def observe(
        self, values: Num[Tensor, "row *dim"], label: Int[Tensor, "row"] | None = None
    ) -> HistogramState:
        """Return the counts of a batch."""
        x = values.reshape(len(values), -1).double()
        if label is not None and self.classes is not None:
            label = check_labels(label, self.classes, "Histogram").to(x.device)
            x, label = x[label >= 0], label[label >= 0]
        dim, n_bins = x.shape[1], self.edges.shape[-1] + 1
        missing = torch.isnan(x)
        index = self._bins(x) + torch.arange(dim, device=x.device) * n_bins
        if self.classes is None or label is None:
            counts = torch.bincount(index[~missing], minlength=dim * n_bins)
            return HistogramState(counts.reshape(dim, n_bins), missing.sum(0))
        index = index * self.classes + label[:, None]
        counts = torch.bincount(index[~missing], minlength=dim * n_bins * self.classes)
        return HistogramState(counts.reshape(dim, n_bins, self.classes), missing.sum(0))

    def merge(self, a: HistogramState, b: HistogramState) -> HistogramState:
        """Return the joined counts."""
        return HistogramState(a.counts + b.counts, a.n_nan + b.n_nan)

    def _bins(self, x: Float[Tensor, "row dim"]) -> Int[Tensor, "row dim"]:
        edges = self.edges.to(x)
        if edges.ndim == 1:
            return torch.bucketize(x, edges, right=True)
        return torch.searchsorted(edges.contiguous(), x.T.contiguous(), right=True).T


def check_labels(label: Int[Tensor, "row"], classes: int, where: str) -> Int[Tensor, "row"]:
    """Return labels as int64; raise if any is not below ``classes``."""
    if len(label) and int(label.max()) >= classes:
        raise InputError(
            f"{where}: expected labels below {classes}, got {int(label.max())}. Raise classes."
        )
    return label.long()
