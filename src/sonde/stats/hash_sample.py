"""Rows with the smallest sampling keys: a mergeable uniform sample, aligned over sites."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from sonde.core.columns import COLUMNS
from sonde.core.errors import InputError
from sonde.core.hashing import rank_key
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.state import State
from sonde.core.statistic import Statistic


@dataclass(frozen=True)
class HashSampleState(State):
    """Entries of a column by sampling key, with their groups; ``n`` rows were seen."""

    n: int
    rows: Shaped[Tensor, "sample ..."]
    draw: Int[Tensor, "sample"]
    group: Int[Tensor, "sample"]
    group_draw: Int[Tensor, "sample"]

    @property
    def is_everything(self) -> bool:
        """True if the sample holds every row."""
        return self.n == len(self.draw)

    def first_of_each_group(self) -> Int[Tensor, "group"]:
        """Return the index of each group's row with the smallest sampling key, sorted by key.

        If rows were left out, a group with many rows is more likely to be found than a group with
        few rows; with ``groups="one"`` every group is equally likely.
        """
        order = torch.argsort(rank_key(self.draw))
        seen: set[int] = set()
        keep = [
            i
            for i in order.tolist()
            if not (int(self.group[i]) in seen or seen.add(int(self.group[i])))
        ]
        return torch.tensor(keep, dtype=torch.int64)

    def whole_groups(self) -> Int[Tensor, "kept"]:
        """Return the indices of rows in complete groups: all, or all except the last group's."""
        everything = torch.arange(len(self.draw))
        if self.is_everything or len(self.draw) == 0:
            return everything
        return everything[self.group_draw != self.group_draw[-1]]


@final
@dataclass(frozen=True)
class HashSample(Statistic[HashSampleState]):
    """The ``m`` rows with the smallest sampling keys, sorted by key.

    The sample does not depend on how rows are divided or ordered.

    The draw is a keyed hash of the row's identity, independent of its value, so the sample is
    uniform without replacement, and it is the same rows at every site and in every column. A row
    that arrives twice counts once.

    Parameters
    ----------
    m : int, default=2048
        Most rows that are kept.
    column : str, default="x"
        Which column is kept.
    groups : bool or "one", default=False
        Sample whole groups: rows of the groups with the smallest sampling keys. The last group may
        be cut; see ``HashSampleState.whole_groups``. ``"one"`` keeps one row of each of the ``m``
        groups with the smallest sampling keys, the row whose own key is smallest: one random row
        of random groups.

    References
    ----------
    steele2014splitmix
    """

    m: int = SAMPLE
    column: str = "x"
    groups: bool | Literal["one"] = False
    in_any_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 1", groups=(False, True, "one"))
        if self.column not in COLUMNS or self.column == "head":
            raise InputError(f"HashSample: expected a column of rows, got {self.column!r}.")

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of ``m`` float32 rows with their sampling keys."""
        width = dims[0] if self.column in ("x", "grad") else 1
        return self.m * (4 * width + 24)

    def needs(self) -> tuple[str, ...]:
        """Return the stored column and the column that orders it."""
        return (self.column, "draw", "group", "group_draw")

    def observe(
        self,
        values: Shaped[Tensor, "row ..."],
        draw: Int[Tensor, "row"],
        group: Int[Tensor, "row"],
        group_draw: Int[Tensor, "row"],
    ) -> HashSampleState:
        """Return the sample of these rows."""
        return self._smallest(len(draw), values, draw, group, group_draw)

    def merge(self, a: HashSampleState, b: HashSampleState) -> HashSampleState:
        """Return the rows with the smallest sampling keys among both samples."""
        return self.merge_all((a, b))

    def merge_all(self, states: Sequence[HashSampleState]) -> HashSampleState:
        """Return the rows with the smallest sampling keys among all samples, copied once."""
        draw, group, group_draw = (
            torch.cat([getattr(s, name) for s in states])
            for name in ("draw", "group", "group_draw")
        )
        order, start = self._order(draw, group_draw), 0
        rows = states[0].rows.new_empty((len(order), *states[0].rows.shape[1:]))
        for s in states:
            own = (order >= start) & (order < start + len(s.draw))
            _place(rows, own, s.rows.to(rows.device), order[own] - start)
            start += len(s.draw)
        n = sum(s.n for s in states)
        return HashSampleState(n, rows, draw[order], group[order], group_draw[order])

    def update(
        self,
        state: HashSampleState,
        values: Shaped[Tensor, "row ..."],
        draw: Int[Tensor, "row"],
        group: Int[Tensor, "row"],
        group_draw: Int[Tensor, "row"],
    ) -> HashSampleState:
        """Return the sample after these rows; rows above the largest stored key are not copied."""
        n = state.n + len(draw)
        if len(state.draw) == self.m:
            last = state.group_draw[-1] if self.groups else state.draw[-1]
            low = rank_key(group_draw if self.groups else draw) <= rank_key(last)
            keep = torch.nonzero(low).flatten()
            values, draw = values[keep.to(values.device)], draw[keep]
            group, group_draw = group[keep], group_draw[keep]
        if len(draw) == 0:
            return HashSampleState(n, state.rows, state.draw, state.group, state.group_draw)
        small = self._smallest(len(draw), values, draw, group, group_draw)
        merged = self.merge(state, small)
        return HashSampleState(n, merged.rows, merged.draw, merged.group, merged.group_draw)

    def absorbs(self, *states: HashSampleState) -> bool:
        """Return whether these samples together hold enough rows for a full sample."""
        return sum(len(s.draw) for s in states) >= self.m

    def _smallest(
        self, n: int, rows: Tensor, draw: Tensor, group: Tensor, group_draw: Tensor
    ) -> HashSampleState:
        order = self._order(draw, group_draw)
        kept = rows.index_select(0, order.to(rows.device))
        return HashSampleState(n, kept, draw[order], group[order], group_draw[order])

    def _order(self, draw: Tensor, group_draw: Tensor) -> Tensor:
        order = torch.argsort(rank_key(draw), stable=True)
        if self.groups:
            order = order[torch.argsort(rank_key(group_draw[order]), stable=True)]
        ordered = (group_draw if self.groups == "one" else draw)[order]
        fresh = torch.ones(len(order), dtype=torch.bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        return order[fresh][: self.m]


def _place(out: Tensor, at: Tensor, rows: Tensor, taken: Tensor) -> None:
    """Copy ``rows[taken]``, in ascending order, to the true positions of ``at``."""
    if len(taken) and int(taken[-1]) == len(taken) - 1:
        rows = rows[: len(taken)]
    else:
        rows = rows.index_select(0, taken.to(rows.device))
    out.index_copy_(0, torch.nonzero(at).flatten().to(out.device), rows)
