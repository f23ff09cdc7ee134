"""Sampled rows without duplicates, and their neighbour distances, for intrinsic dimensions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.engine.copies import copied_rows
from sonde.measure._flags import precision_flags, relative_spread
from sonde.stats import HashSampleState, nearest
from sonde.stats.sampled_rows import LEAST_FOR_HALVES, SampledRows

CLOSE = 1e-3
Figure = Callable[[SampledRows], Float[Tensor, "*scale"]]


@dataclass(frozen=True)
class Neighbourhood:
    """The distinct rows of a sample, the number of removed duplicates, and the flags.

    A copy lies at distance 0, and no estimate of dimension allows a distance of 0.
    """

    rows: SampledRows
    n_copies: int
    flags: tuple[str, ...]

    @classmethod
    def of(cls, sample: HashSampleState) -> "Neighbourhood":
        """Return the distinct finite rows of a sample."""
        every = SampledRows.of((sample,))
        rows = distinct(every)
        flags = [*every.flags, *(["copies"] if len(rows) < len(every) else [])]
        if len(rows) < 2:
            flags.append("dead" if len(every) > 1 else "few_rows")
        else:
            x = rows.rows[0]
            flags += precision_flags(relative_spread(x.mean(0), x.var(0)), sample.rows.dtype)
        return cls(rows, len(every) - len(rows), tuple(flags))

    def flags_of(self, value: Tensor, near: Float[Tensor, "row"]) -> tuple[str, ...]:
        """Return all flags of an estimate, from each row's nearest-neighbour distance.

        ``high_dim`` follows Eckmann and Ruelle: ``n`` rows show at most ``2 log10 n`` dimensions.
        """
        number, n = float(value), self.rows.n_groups
        raised = {
            "few_rows": math.isnan(number) or n < LEAST_FOR_HALVES,
            "saturated": math.isinf(number),
            "high_dim": math.isfinite(number) and number > 2 * math.log10(n),
            "copies": self._nearly_equal(near),
        }
        return tuple(dict.fromkeys((*self.flags, *(f for f, is_so in raised.items() if is_so))))

    def _nearly_equal(self, near: Float[Tensor, "row"]) -> bool:
        """Return whether over 1 % of rows are closer than 0.001 of an even gap."""
        if len(near) == 0:
            return False
        spread = float(self.rows.rows[0].var(0, correction=0).sum()) ** 0.5
        return float((near < CLOSE / max(len(near), 1000) * spread).double().mean()) > 0.01

    def error(self, figure: Figure) -> tuple[Tensor | None, str]:
        """Return an estimate's standard error, and its method.

        None if the first of the figures, the value, has no error.
        """
        se, how = self.rows.standard_error(figure)
        if se is not None and not bool(torch.isfinite(se.flatten()[0])):
            return None, "none: too few groups in each half"
        return se, how


def distinct(rows: SampledRows) -> SampledRows:
    """Return the distinct rows, keeping the first of equal ones."""
    _, number = torch.unique(rows.rows[0], dim=0, return_inverse=True)
    number = number.cpu()
    index = torch.arange(len(rows))
    first = torch.full((int(number.max()) + 1 if len(rows) else 0,), len(rows))
    first.scatter_reduce_(0, number, index, "amin")
    return rows.take(torch.sort(first).values)


def copy_flags(
    rows: Sequence[Float[Tensor, "row _dim"]], group: Int[Tensor, "row"]
) -> tuple[str, ...]:
    """Return ``copies`` if rows of different groups are equal at some site."""
    for x in rows:
        number = torch.unique(x, dim=0, return_inverse=True)[1].cpu()
        if len(torch.unique(torch.stack([number, group], 1), dim=0)) > len(torch.unique(number)):
            return ("copies",)
    return ()


def without_copies(rows: SampledRows) -> SampledRows:
    """Return the rows, without those equal to an earlier row at all sites.

    Copies are neighbours of each other at every site, whatever the sites have in common. Rows that
    are equal by chance, such as rows of symbols, stay.
    """
    first = copied_rows([*rows.rows])
    return rows if first is None else rows.take(first == torch.arange(len(first)))


def nearest_distance(rows: SampledRows) -> Float[Tensor, "row"]:
    """Return each row's distance to the nearest row of another group; empty below two groups."""
    if rows.n_groups < 2:
        return torch.zeros(0, dtype=torch.float64)
    return neighbour_distances(rows, 1)[:, 0]


def neighbour_distances(rows: SampledRows, k: int) -> Float[Tensor, "row k"]:
    """Return each row's distances to its ``k`` nearest groups, by each group's nearest row.

    Rows of one document lie together. If each counted as a neighbour, the second nearest would be
    as near as the first, and the dimension would have no bound.
    """
    x = rows.rows[0]
    return nearest(x, x, k, group=rows.group, group2=rows.group, each_once=rows.grouped)[0].cpu()


def null_dimension(rows: SampledRows, figure: Figure) -> Float[Tensor, "*scale"] | None:
    """Return the estimate after each unit's values are shuffled independently."""
    null = figure(distinct(rows.with_shuffled_columns()))
    return null if bool(torch.isfinite(null.flatten()[0])) else None
