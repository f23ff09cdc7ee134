"""Representational similarity analysis: rank correlation of two sites' pair distances.

It compares distances, large and small alike; for near neighbours alone see ``mutual_knn``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState, half_error, midranks, random_halves, unit_rows
from sonde.stats.sampled_rows import LEAST_FOR_HALVES, SampledRows

Distance = Literal["euclidean", "cosine", "correlation"]
Comparison = Literal["spearman", "pearson", "cosine"]


@final
@dataclass(frozen=True)
class RSA(PairSampleInstrument):
    """Correlation of the distances between rows at one site with those at the other.

    The distances of all pairs of sampled rows are listed for each site and the lists compared. The
    null of a correlation is 0; a cosine of lists that are not centred is near 1 for anything, and
    its null says so.

    Range        [-1, 1]; higher = more alike. Invariant to  rotation, isotropic scale; with
                 Euclidean distances also to shifts.
    Cost         one pass; state ``m`` rows; result O(m^2 (dim + log m)) and 20 m^2 bytes.
    Assumes      at least 4 rows (flag ``few_rows``); pairs of one group (document) are left out.
    Differs      from the paper: rows are single inputs, not means over repeats.

    Parameters
    ----------
    distance : {"euclidean", "cosine", "correlation"}, default="euclidean"
        Squared Euclidean distance; one minus the cosine of rows; or one minus the cosine of rows
        that are each centred over their units.
    comparison : {"spearman", "pearson", "cosine"}, default="spearman"
        Correlation of ranks, of distances, or their cosine.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> round(rsa(x, 2 * x.flip(1) + 1).value, 6)
    1.0

    References
    ----------
    kriegeskorte2008rsa
    """

    distance: Distance = "euclidean"
    comparison: Comparison = "spearman"
    m: int = SAMPLE
    paper: ClassVar[str] = "kriegeskorte2008rsa"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"m": 64},
        {"distance": "correlation", "comparison": "pearson", "m": 64},
        {"distance": "cosine", "comparison": "cosine", "m": 64},
    )

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 4")
        for name, choices in (("distance", get_args(Distance)), ("comparison", tuple(COMPARISONS))):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"RSA: expected the {name} {', '.join(choices)}, got {getattr(self, name)!r}."
                )

    def result(self, samples: tuple[HashSampleState, HashSampleState]) -> "RSAResult":
        """Compute the distances of all pairs, and compare both lists."""
        rows = SampledRows.of(samples)
        alive = torch.stack([self._alive(x).cpu() for x in rows.rows]).all(0)
        flags = rows.flags + (("dead",) if not bool(alive.all()) else ())
        rows = rows.take(alive)
        first, second = torch.triu_indices(len(rows), len(rows), 1)
        apart = rows.group[first] != rows.group[second]
        pairs = first[apart], second[apart]
        lists = [self._distances(x)[pairs[0], pairs[1]] for x in rows.rows]
        compare = COMPARISONS[self.comparison]
        conventions = {
            "distance": self.distance,
            "comparison": self.comparison,
            "pairs": "of different groups",
        }
        value = compare(*lists) if len(lists[0]) > 2 else math.nan
        if math.isnan(value):
            flags += ("few_rows",) if len(lists[0]) <= 2 else ("dead",)
        se, how = self._error(rows.group, pairs, lists)
        return RSAResult(
            value=value,
            se=None if math.isnan(value) else se,
            null=_cosine_null(*lists) if self.comparison == "cosine" else 0.0,
            n=len(rows),
            range=(-1.0, 1.0),
            flags=tuple(dict.fromkeys(flags)),
            conventions={**conventions, "se": how},
        )

    def _error(
        self,
        group: Int[Tensor, "row"],
        pairs: tuple[Int[Tensor, "pair"], Int[Tensor, "pair"]],
        lists: list[Float[Tensor, "pair"]],
    ) -> tuple[float | None, str]:
        """Return the deviation over random halves of the groups, and the method."""
        if len(torch.unique(group)) < LEAST_FOR_HALVES:
            return None, f"none: fewer than {LEAST_FOR_HALVES} groups"
        values: list[float] = []
        for half in random_halves(group):
            both = half[pairs[0]] & half[pairs[1]]
            values.append(COMPARISONS[self.comparison](*(x[both] for x in lists)))
        error = half_error(torch.tensor(values, dtype=torch.float64), group)
        return float(error), "20 random halves"

    def _alive(self, x: Float[Tensor, "row dim"]) -> Bool[Tensor, "row"]:
        """Return the mask of nonzero rows; with Euclidean distances, all rows."""
        if self.distance == "euclidean":
            return torch.ones(len(x), dtype=torch.bool)
        return self._directed(x).any(1)

    def _directed(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        if self.distance == "cosine":
            return x
        z = x - x.mean(1, keepdim=True)
        rounding = x.abs().amax(1, keepdim=True) * torch.finfo(torch.float32).eps
        return torch.where(z.abs().amax(1, keepdim=True) > rounding, z, 0.0)

    def _distances(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row row"]:
        if self.distance != "euclidean":
            unit = unit_rows(self._directed(x))
            return 1.0 - unit @ unit.T
        z = x - x.mean(0)
        square = z.square().sum(1)
        return square[:, None] + square - 2.0 * (z @ z.T)


@final
@dataclass(frozen=True, kw_only=True)
class RSAResult(Result):
    """Correlation of two lists of distances."""

    direction: Direction = "higher"


def _cosine(x: Float[Tensor, "pair"], y: Float[Tensor, "pair"]) -> float:
    size = float(x.norm() * y.norm())
    return float(x @ y.to(x)) / size if size > 0.0 else math.nan


def _pearson(x: Float[Tensor, "pair"], y: Float[Tensor, "pair"]) -> float:
    one, two = x - x.mean(), y - y.mean()
    equal = any(bool(gap.norm() <= 1e-9 * a.norm()) for gap, a in ((one, x), (two, y)))
    return math.nan if equal else _cosine(one, two)


def _cosine_null(x: Float[Tensor, "pair"], y: Float[Tensor, "pair"]) -> float:
    """Return the expected cosine if the two sites' distances are paired at random."""
    size = float(x.square().mean().sqrt() * y.square().mean().sqrt()) if len(x) else 0.0
    return float(x.mean() * y.mean().to(x)) / size if size > 0.0 else math.nan


COMPARISONS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "spearman": lambda x, y: _pearson(midranks(x), midranks(y)),
    "pearson": _pearson,
    "cosine": _cosine,
}


rsa = as_function(RSA)
