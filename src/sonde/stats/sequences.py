"""Rows of one example: tokens of a text, steps of a trajectory, patches of an image.

Rows of many examples come mixed and in any order. This module finds which rows belong together,
their order, and which row follows which. A statistic that uses this module looks at whole examples
and declares it (``whole_examples``).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Rows sorted by example and, within it, by position.

    Parameters
    ----------
    rows : Int[Tensor, "row"]
        Which row stands at each place.
    member : Int[Tensor, "row"]
        Which example the row at each place is of: 0, 1, ...
    example : Int[Tensor, "example"]
        The examples as they were given, ascending.
    counts : Int[Tensor, "example"]
        How many rows each one has.
    """

    rows: Int[Tensor, "row"]
    member: Int[Tensor, "row"]
    example: Int[Tensor, "example"]
    counts: Int[Tensor, "example"]

    @property
    def starts(self) -> Int[Tensor, "example"]:
        """Index of each example's first row."""
        return self.counts.cumsum(0) - self.counts

    @property
    def first(self) -> Int[Tensor, "example"]:
        """The first row of each example."""
        return self.rows[self.starts]

    @property
    def rank(self) -> Int[Tensor, "row"]:
        """Index of each row within its example, in order of position."""
        return torch.arange(len(self.rows), device=self.rows.device) - self.starts[self.member]

    @property
    def continues(self) -> Bool[Tensor, "row"]:
        """True if the row at each position follows another row of its example."""
        return self.rank > 0

    def each(self) -> tuple[Int[Tensor, "_row"], ...]:
        """Return the rows of each example."""
        return self.rows.split(self.counts.tolist())


def by_example(
    example: Int[Tensor, "row"],
    position: Shaped[Tensor, "row"] | None = None,
    *,
    descending: bool = False,
) -> Sequences:
    """Return rows sorted by example, then position, then order of arrival.

    Parameters
    ----------
    example : Int[Tensor, "row"]
        Equal for rows of one example, such as the column ``order``.
    position : Tensor or None, default=None
        What orders the rows of an example; None keeps them as they came.
    descending : bool, default=False
        Whether the largest position stands first.

    Examples
    --------
    >>> found = by_example(torch.tensor([7, 3, 7, 7]), torch.tensor([2, 0, 0, 1]))
    >>> found.rows.tolist(), found.example.tolist(), found.counts.tolist()
    ([1, 2, 3, 0], [3, 7], [1, 3])
    >>> found.rank.tolist(), [rows.tolist() for rows in found.each()]
    ([0, 0, 1, 2], [[1], [2, 3, 0]])
    """
    if position is None:
        rows = torch.argsort(example, stable=True)
    else:
        rows = torch.argsort(position, descending=descending, stable=True)
        rows = rows[torch.argsort(example[rows], stable=True)]
    examples, member, counts = torch.unique_consecutive(
        example[rows], return_inverse=True, return_counts=True
    )
    return Sequences(rows, member, examples, counts)


def example_numbers(*names: Int[Tensor, "row ..."]) -> Int[Tensor, "row"]:
    """Return each row's example index, 0, 1, ... in ascending order of example name.

    Parameters
    ----------
    *names : Int[Tensor, "row ..."]
        Columns that are equal for the rows of one example alone, such as ``ids`` and
        ``occurrence``.

    Examples
    --------
    >>> example_numbers(torch.tensor([5, 4, 5]), torch.tensor([0, 1, 0])).tolist()
    [1, 0, 1]
    """
    if len(names) == 1 and names[0].ndim == 1:  # torch sorts numbers ten times as fast as rows
        return torch.unique(names[0], return_inverse=True)[1]
    return torch.unique(torch.column_stack(names), dim=0, return_inverse=True)[1]
