"""Rows of aligned samples, with errors from halves and nulls from shuffled groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sonde.core.few_groups import grouped_error
from sonde.core.finite import finite_rows
from sonde.core.hashing import rank_key
from sonde.stats.halves import half_error, random_halves
from sonde.stats.hash_sample import HashSampleState

SHUFFLES = 20
ALIKE = 8
"""How many groups of one size change places among themselves alone."""
LEAST_FOR_HALVES = 16


@dataclass(frozen=True)
class SampledRows:
    """The rows that several sites' samples share, by sampling key, in float64.

    Parameters
    ----------
    rows : tuple of Float[Tensor, "row dim"]
        For each site; row ``i`` is the same row of the data everywhere.
    group : Int[Tensor, "row"]
        Which rows belong together: a number for each group (document), or for each row.
    n_seen : int
        How many rows the data has.
    """

    rows: tuple[Float[Tensor, "row _dim"], ...]
    group: Int[Tensor, "row"]
    n_seen: int

    @classmethod
    def of(cls, samples: Sequence[HashSampleState]) -> "SampledRows":
        """Return the finite rows that all samples hold.

        A sample of another column (labels) stands for rows of width 1.
        """
        shared = samples[0].draw
        for sample in samples[1:]:
            shared = shared[torch.isin(shared, sample.draw)]
        shared = shared[torch.argsort(rank_key(shared))]
        places = [_places(sample.draw, shared) for sample in samples]
        rows = [
            _as_rows(s.rows[at.to(s.rows.device)].double())
            for s, at in zip(samples, places, strict=True)
        ]
        finite = torch.stack([finite_rows(x).cpu() for x in rows]).all(dim=0)
        group = samples[0].group[places[0]][finite]
        _, number = torch.unique(group, return_inverse=True)
        kept = tuple(x[finite.to(x.device)] for x in rows)
        return cls(kept, number, max(s.n for s in samples))

    def __len__(self) -> int:
        return len(self.group)

    @property
    def n_groups(self) -> int:
        """Number of groups of the rows."""
        return int(self.group.max()) + 1 if len(self) else 0

    @property
    def flags(self) -> tuple[str, ...]:
        """``sampled`` if not every row of the data is included."""
        return ("sampled",) if self.n_seen > len(self) else ()

    @property
    def grouped(self) -> bool:
        """True if some rows share a group."""
        return self.n_groups < len(self)

    def take(self, keep: Bool[Tensor, "row"] | Int[Tensor, "_kept"]) -> "SampledRows":
        """Return some of the rows, in the given order."""
        _, number = torch.unique(self.group[keep], return_inverse=True)
        rows = tuple(x[keep.to(x.device)] for x in self.rows)
        return replace(self, rows=rows, group=number)

    def standard_error(
        self, figure: Callable[["SampledRows"], float | Tensor], seed: int = 0
    ) -> tuple[Tensor | None, str]:
        """Return a statistic's deviation over 20 random halves of the groups, and the method.

        A half has twice the variance of the whole and shares half of it, so the spread over halves
        is the standard error on all rows. None below 16 groups; below 32 widened by Student's t.
        """
        if self.n_groups < LEAST_FOR_HALVES:
            return None, f"none: fewer than {LEAST_FOR_HALVES} groups"
        halves = random_halves(self.group, seed=seed)
        values = [torch.as_tensor(figure(self.take(half)), dtype=torch.float64) for half in halves]
        return half_error(torch.stack(values), self.group), "20 random halves"

    def error_of_mean(self, values: Float[Tensor, "row"]) -> tuple[Tensor | None, str]:
        """Return the standard error of the mean of a per-row statistic, and the method.

        Groups are taken as independent; rows of a group may depend on each other. None below 16
        groups; below 32 widened by Student's t.
        """
        if self.n_groups < LEAST_FOR_HALVES:
            return None, f"none: fewer than {LEAST_FOR_HALVES} groups"
        gap = values.double().cpu() - values.double().cpu().mean()
        sums = torch.zeros(self.n_groups, dtype=torch.float64).index_add_(0, self.group, gap)
        return grouped_error(sums, torch.bincount(self.group)) / len(self), "spread over groups"

    def shuffled(self, seed: int = 0, n: int = SHUFFLES) -> list["SampledRows"]:
        """Return ``n`` versions of the rows with the last site shuffled among groups.

        Whole groups change places with groups of equal size, or of similar size if fewer than
        ``ALIKE`` groups have that size. If sizes differ, rows of a shorter group are repeated, and
        the last rows of a longer group are dropped.
        """
        generator = torch.Generator().manual_seed(seed)
        size = torch.bincount(self.group, minlength=self.n_groups)
        order = torch.argsort(self.group, stable=True)
        start = torch.cumsum(size, 0) - size
        step = torch.empty_like(order)
        step[order] = torch.arange(len(order)) - start[self.group[order]]
        classes = _alike(size)
        versions: list[SampledRows] = []
        for _ in range(n):
            other = torch.arange(self.n_groups)
            for members in classes:
                other[members] = members[_moved(len(members), len(classes) > 1, generator)]
            other = other[self.group]
            source = order[start[other] + step % size[other]]
            last = self.rows[-1][source.to(self.rows[-1].device)]
            versions.append(replace(self, rows=(*self.rows[:-1], last)))
        return versions

    def with_shuffled_columns(self, seed: int = 0) -> "SampledRows":
        """Return the rows with each unit shuffled separately, so that units are independent.

        A group takes all its values of a unit from a single group. If sizes differ, values of a
        shorter group are repeated, and the last values of a longer group are dropped.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.argsort(self.group, stable=True)
        size = torch.bincount(self.group)
        start = torch.cumsum(size, 0) - size
        step = torch.empty_like(order)
        step[order] = torch.arange(len(order)) - start[self.group[order]]
        columns = []
        for x in self.rows:
            other = torch.rand(self.n_groups, x.shape[1], generator=generator).argsort(0)
            other = other[self.group]
            source = order[start[other] + step[:, None] % size[other]]
            columns.append(x.gather(0, source.to(x.device)))
        return replace(self, rows=tuple(columns))


def _alike(size: Int[Tensor, "group"]) -> list[Int[Tensor, "_alike"]]:
    """Return classes of at least ``ALIKE`` groups of equal or similar size."""
    shared = torch.bincount(size)[size] if len(size) else size
    rare = torch.nonzero(shared < ALIKE).flatten()
    common = [torch.nonzero(size == s).flatten() for s in torch.unique(size[shared >= ALIKE])]
    if len(rare) >= ALIKE or not common:
        rare = rare[torch.argsort(size[rare], stable=True)]
        return [*common, *rare.tensor_split(max(1, len(rare) // ALIKE))]
    if len(rare):  # too few of their own: they join the longest groups
        common[-1] = torch.cat([common[-1], rare])
    return common


def _moved(n: int, all_move: bool, generator: torch.Generator) -> Int[Tensor, "_group"]:
    """Return a random order of ``n`` groups; with ``all_move``, no group of several stays."""
    while True:
        order = torch.randperm(n, generator=generator)
        if not (all_move and n > 1 and bool((order == torch.arange(n)).any())):
            return order


def _as_rows(x: Shaped[Tensor, "row ..."]) -> Float[Tensor, "row _dim"]:
    """Return rows unchanged, and a column of numbers as rows of width 1."""
    return x[:, None] if x.ndim == 1 else x


def _places(draw: Int[Tensor, "_sample"], wanted: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """Return the index of each requested sampling key."""
    ordered, at = torch.sort(draw)
    return at[torch.searchsorted(ordered, wanted)]
