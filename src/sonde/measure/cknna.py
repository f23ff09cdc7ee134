"""Kernel alignment of two sites on the pairs of rows that are neighbours in both."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._neighbourhood import copy_flags, without_copies
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState
from sonde.stats.neighbours import CHUNK
from sonde.stats.sampled_rows import SampledRows

LEAST_TO_THIN = 8


@final
@dataclass(frozen=True, kw_only=True)
class CKNNAResult(Result):
    """Alignment on common neighbours; ``null_spread`` is the standard deviation of its null."""

    direction: Direction = "higher"
    null_spread: float


@final
@dataclass(frozen=True)
class CKNNA(PairSampleInstrument):
    """Centred kernel alignment restricted to rows that are neighbours at both sites.

    The neighbours of a centred row are the ``k`` rows with which its inner product is largest. The
    debiased independence criterion ``h`` of the inner products of common neighbours is divided by
    ``sqrt(h h')`` of each site's own neighbours. It lies between ``mutual_knn``, which counts
    common neighbours, and ``cka``, which takes all pairs. The null is the mean of 20 shuffles.

    Range        (-inf, 1]; higher = more alike, never clamped. Invariant to rotation, isotropic
                 scale, shifts.
    Cost         one pass; state ``m`` rows; result O(m^2 dim), never more than 1,024 lines at once.
    Assumes      rows of one group (document) are no neighbours of each other: they are left out.
    Differs      from the paper: rows are centred and not brought to unit length.

    Parameters
    ----------
    k : int, default=10
        Neighbours of each row, at least 2.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> round(cknna(x, 2 * x.flip(1) + 5).value, 6)
    1.0

    References
    ----------
    huh2024platonic, song2012hsic
    """

    k: int = 10
    m: int = SAMPLE
    paper: ClassVar[str] = "huh2024platonic"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"k": 3}, {"k": 2, "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, k=">= 2")

    def result(self, samples: tuple[HashSampleState, HashSampleState]) -> CKNNAResult:
        """Compute the alignment of common neighbours' inner products."""
        every = SampledRows.of(samples)
        rows = without_copies(every)
        conventions = {"k": self.k, "centered": True, "neighbours": "of other groups"}
        sites = self._products(rows)
        scale = math.nan if sites is None else _scale(*sites)
        if sites is None or math.isnan(scale):
            return CKNNAResult(
                n=len(rows),
                range=(-math.inf, 1.0),
                flags=(*every.flags, "few_rows" if sites is None else "dead"),
                conventions=conventions,
                null_spread=math.nan,
            )
        # Neighbours of half the rows reach farther. With all of them the error is .74 of the spread
        # over fresh rows (k = 10), with half of them 1.2 to 1.6.
        fewer = replace(self, k=round(self.k * 0.5**0.5)) if self.k >= LEAST_TO_THIN else self
        se, how = rows.standard_error(fewer._value)
        failed = se is not None and not bool(torch.isfinite(se))
        null = torch.tensor([_common(sites[0], sites[1].moved(s)) for s in _sources(rows)]) / scale
        return CKNNAResult(
            value=_common(*sites) / scale,
            se=None if failed else se,
            null=null.double().mean(),
            n=len(rows),
            range=(-math.inf, 1.0),
            flags=every.flags + copy_flags(every.rows, every.group),
            conventions={**conventions, "se": "none: too few rows in a half" if failed else how},
            null_spread=float(null.double().std()),
        )

    def _value(self, rows: SampledRows) -> float:
        sites = self._products(rows)
        return math.nan if sites is None else _common(*sites) / _scale(*sites)

    def _products(self, rows: SampledRows) -> "tuple[_Products, _Products] | None":
        """Return both sites' largest inner products, or None if rows are too few."""
        if len(rows) < 4 or self.k >= len(rows) - int(torch.bincount(rows.group).max()) + 1:
            return None
        x, y = (_Products.of(rows, site, self.k) for site in (0, 1))
        return x, y


@dataclass(frozen=True)
class _Products:
    """Some entries of an ``n`` by ``n`` matrix; ``key = row * n + column`` in ascending order."""

    n: int
    key: Int[Tensor, "entry"]
    value: Float[Tensor, "entry"]

    @classmethod
    def of(cls, rows: SampledRows, site: int, k: int) -> "_Products":
        """Return the ``k`` largest inner products of each row with rows of other groups."""
        x = rows.rows[site] - rows.rows[site].mean(0)
        # by a power of two, which leaves the value to the bit: products of products stay in range
        x = torch.ldexp(x, -torch.frexp(x.abs().max()).exponent)
        group, keys, values = rows.group.to(x.device), [], []
        for start in range(0, len(x), CHUNK):
            product = x[start : start + CHUNK] @ x.T
            same = group[start : start + CHUNK, None] == group
            top, at = product.masked_fill_(same, -torch.inf).topk(k)
            line = torch.arange(start, start + len(top), device=x.device)[:, None]
            keys.append((line * len(x) + at).flatten())
            values.append(top.flatten())
        return cls._sorted(len(x), torch.cat(keys).cpu(), torch.cat(values).cpu())

    @classmethod
    def _sorted(cls, n: int, key: Tensor, value: Tensor) -> "_Products":
        key, order = torch.sort(key)
        return cls(n, key, value[order])

    @property
    def transposed(self) -> "_Products":
        """The entries with rows and columns swapped."""
        return self._sorted(self.n, self.key % self.n * self.n + self.key // self.n, self.value)

    def among(self, other: "_Products") -> "_Products":
        """Return the entries that are also in the other matrix."""
        both = torch.isin(self.key, other.key)
        return _Products(self.n, self.key[both], self.value[both])

    def moved(self, source: Int[Tensor, "row"]) -> "_Products":
        """Return the entries after moving row ``source[i]`` to position ``i``."""
        place = torch.argsort(source)
        key = place[self.key // self.n] * self.n + place[self.key % self.n]
        return self._sorted(self.n, key, self.value)

    def sums(self, axis: int) -> Float[Tensor, "row"]:
        """Return the sum of each row (``axis = 1``) or column (0)."""
        at = self.key // self.n if axis else self.key % self.n
        return torch.zeros(self.n, dtype=torch.float64).index_add_(0, at, self.value)


def _hsic(a: _Products, b: _Products) -> float:
    """Return ``n (n - 3)`` times the debiased criterion, for matrices that are not symmetric."""
    n, turned = a.n, b.transposed
    trace = (a.among(turned).value * turned.among(a).value).sum()
    total = a.value.sum() * b.value.sum() / ((n - 1) * (n - 2))
    return float(trace + total - 2 * (a.sums(0) @ b.sums(1)) / (n - 2))


def _common(x: _Products, y: _Products) -> float:
    """Return the criterion of the entries in both matrices."""
    return _hsic(x.among(y), y.among(x))


def _scale(x: _Products, y: _Products) -> float:
    """Return the divisor that makes self-alignment 1, or NaN if a criterion is not positive."""
    own = _hsic(x, x), _hsic(y, y)
    return math.sqrt(own[0]) * math.sqrt(own[1]) if min(own) > 0 else math.nan


def _sources(rows: SampledRows) -> list[Int[Tensor, "row"]]:
    """Return orders of the rows in which whole groups are permuted."""
    index = torch.arange(len(rows), dtype=torch.float64)[:, None]
    moved = SampledRows((index,), rows.group, len(rows)).shuffled()
    return [order.rows[0][:, 0].long() for order in moved]


cknna = as_function(CKNNA)
