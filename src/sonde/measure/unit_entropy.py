"""How uniformly each unit uses its range; the first of two passes finds the bins."""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.stats.histogram import Histogram, HistogramState
from sonde.stats.quantiles import Quantiles, QuantilesState

# Errors of ranks must stay well below the default ``trim``.
CAPACITY = 1024
FEW, DRAWN_UNITS = 4096, 32


@final
@dataclass(frozen=True, kw_only=True)
class UnitEdges(Result):
    """Inner bin edges of each unit, computed by the first pass."""

    edges: Float[Tensor, "dim edge"]


@final
@dataclass(frozen=True, kw_only=True)
class UnitEntropyResult(Result):
    """Mean entropy over units; ``entropy`` holds each unit's value, ``edges`` the bins."""

    direction: Direction = "higher"
    entropy: Float[Tensor, "dim"]
    edges: Float[Tensor, "dim edge"]


@final
@dataclass(frozen=True)
class UnitEntropy(Instrument):
    """Mean entropy of units' values in equal bins over each unit's own range.

    A unit that is nearly always in one bin says little about the row, one that fills its range
    evenly says most. The first pass finds each unit's range between two quantiles, the second
    counts. ``-sum p ln p``, corrected for ``n`` by ``(occupied - 1) / (2 n)``. The null is the
    entropy of a normal unit in such bins.

    Range        [0, ln n_bins], nats; higher = more evenly used.
    Cost         two passes; state 8 dim k log2(n / k) bytes, then 8 dim n_bins; result O(dim
                 n_bins).
    Assumes      many more rows than bins.
    Differs      from fixed bins: invariant to scale and shift of each unit.

    Parameters
    ----------
    n_bins : int, default=30
        Bins of equal width; the first and last are open.
    trim : float, default=0.01
        The range lies between the quantiles ``trim`` and ``1 - trim``.

    Examples
    --------
    >>> rows = torch.linspace(0, 1, 1000)[:, None]
    >>> round(unit_entropy(rows, n_bins=10).value / math.log(10), 2)
    1.0

    References
    ----------
    shannon1948theory, chelombiev2019adaptive
    """

    n_bins: int = 30
    trim: float = 0.01
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "chelombiev2019adaptive"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"n_bins": 4})

    def __post_init__(self) -> None:
        check_ranges(self, n_bins=">= 2", trim="[0, 0.5)")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each unit's quantiles."""
        return {"quantiles": Quantiles(CAPACITY)}

    def result(self, quantiles: QuantilesState) -> UnitEdges:
        """Compute equal bins between two quantiles of each unit."""
        ends = torch.tensor([self.trim, 1.0 - self.trim], dtype=torch.float64)
        low, high = quantiles.quantile(ends)
        flat = high <= low
        low, high = torch.where(flat, low - 0.5, low), torch.where(flat, high + 0.5, high)
        inner = torch.arange(1, self.n_bins, dtype=torch.float64) / self.n_bins
        edges = low[:, None] + (high - low)[:, None] * inner
        return UnitEdges(value=float(self.n_bins), n=quantiles.n, edges=edges)

    def then(self, result: Result) -> Instrument:
        """Return the pass that counts in those bins."""
        assert isinstance(result, UnitEdges)  # the result of this class
        return _CountedEntropy(result.edges, self.trim)


@final
@dataclass(frozen=True, eq=False)
class _CountedEntropy(Instrument):
    """The second pass of ``UnitEntropy``: counts between known edges."""

    edges: Float[Tensor, "dim edge"]
    trim: float

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for counts between the edges."""
        return {"counts": Histogram(self.edges)}

    def result(self, counts: HistogramState) -> UnitEntropyResult:
        """Compute the entropy of each unit's counts."""
        n, n_bins = counts.n.double(), counts.counts.shape[1]
        entropy = _corrected(counts.counts)
        return UnitEntropyResult(
            value=float(entropy.mean()),
            null=_normal_entropy(n_bins, self.trim, int(n.max())),
            n=int(n.max()),
            unit="nats",
            range=(0.0, math.log(n_bins)),
            flags=("few_rows",) if int(n.max()) < 10 * n_bins else (),
            conventions={
                "bins": "equal width between two quantiles of each unit",
                "correction": "Miller-Madow",
                "log": "e",
            },
            entropy=entropy,
            edges=self.edges,
        )


def _corrected(counts: Tensor) -> Float[Tensor, "dim"]:
    """Return the entropy of each unit's counts, corrected for the number of rows."""
    n = counts.sum(1).double()
    share = counts / n[:, None]
    occupied = (counts > 0).sum(1)
    return -torch.xlogy(share, share).sum(1) + (occupied - 1) / (2.0 * n)


@functools.lru_cache(maxsize=64)
def _normal_entropy(n_bins: int, trim: float, n: int) -> float:
    """Return the mean entropy of ``n`` normal rows, simulated if they are few."""
    if n <= FEW:
        random = torch.Generator().manual_seed(0)
        z = torch.randn(n, DRAWN_UNITS, generator=random, dtype=torch.float64)
        instrument = UnitEntropy(n_bins, trim)
        edges = instrument.result(instrument.reads()["quantiles"].observe(z))
        return float(_corrected(Histogram(edges.edges).observe(z).counts).mean())
    normal = torch.distributions.Normal(0.0, 1.0)
    end = normal.icdf(torch.tensor(1.0 - max(trim, 1e-6), dtype=torch.float64))
    edges = torch.linspace(-1, 1, n_bins + 1, dtype=torch.float64)[1:-1] * end
    below = torch.cat([torch.zeros(1), normal.cdf(edges), torch.ones(1)])
    share = below.diff()
    return float(-torch.xlogy(share, share).sum())


unit_entropy = as_function(UnitEntropy)
