"""Sampled rows without copies, and the distances to their neighbours, for intrinsic dimensions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.measure._flags import precision_flags, relative_spread
from sonde.stats import HashSampleState, nearest
from sonde.stats.sampled_rows import SampledRows

Figure = Callable[[SampledRows], Float[Tensor, "*scale"]]


@dataclass(frozen=True)
class Neighbourhood:
    """The distinct rows of a sample, how many copies were left out, and what to say about them.

    A copy is at distance 0, which no estimate of dimension bears.
    """

    rows: SampledRows
    n_copies: int
    flags: tuple[str, ...]

    @classmethod
    def of(cls, sample: HashSampleState) -> "Neighbourhood":
        """Return the distinct finite rows of a sample."""
        every = SampledRows.of((sample,))
        rows = distinct(every)
        flags = list(every.flags)
        if len(rows) < 2:
            flags.append("dead" if len(every) > 1 else "few_rows")
        else:
            x = rows.rows[0]
            flags += precision_flags(relative_spread(x.mean(0), x.var(0)), sample.rows.dtype)
        return cls(rows, len(every) - len(rows), tuple(flags))

    def flags_of(self, value: Tensor) -> tuple[str, ...]:
        """Return all flags of an estimate.

        ``high_dim`` follows Eckmann and Ruelle: ``n`` rows bear at most ``2 log10 n`` dimensions.
        """
        number = float(value)
        if math.isnan(number):
            return tuple(dict.fromkeys((*self.flags, "few_rows")))
        if math.isinf(number):
            return (*self.flags, "saturated")
        high = number > 2 * math.log10(self.rows.n_groups)
        return (*self.flags, "high_dim") if high else self.flags

    def error(self, figure: Figure) -> tuple[Tensor | None, str]:
        """Return the standard error of an estimate, and how it was made.

        None where the first of its figures, the value, has none.
        """
        se, how = self.rows.standard_error(figure)
        if se is not None and not bool(torch.isfinite(se.flatten()[0])):
            return None, "none: too few groups in a half"
        return se, how


def distinct(rows: SampledRows) -> SampledRows:
    """Return the rows without copies: of equal rows the first."""
    _, number = torch.unique(rows.rows[0], dim=0, return_inverse=True)
    number = number.cpu()
    index = torch.arange(len(rows))
    first = torch.full((int(number.max()) + 1 if len(rows) else 0,), len(rows))
    first.scatter_reduce_(0, number, index, "amin")
    return rows.take(torch.sort(first).values)


def neighbour_distances(rows: SampledRows, k: int) -> Float[Tensor, "row k"]:
    """Return each row's distances to its ``k`` nearest groups, of which the nearest row counts.

    Rows of one document lie together: were each of them a neighbour, the second nearest would be
    as near as the first, and the dimension without bound.
    """
    x = rows.rows[0]
    return nearest(x, x, k, group=rows.group, group2=rows.group, each_once=rows.grouped)[0].cpu()


def null_dimension(rows: SampledRows, figure: Figure) -> Float[Tensor, "*scale"] | None:
    """Return the same estimate where units are unrelated: each one's values shuffled."""
    null = figure(distinct(rows.with_shuffled_columns()))
    return null if bool(torch.isfinite(null.flatten()[0])) else None
