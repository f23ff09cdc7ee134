"""Clusters of correlated units: concepts, groups of channels, units to merge.

Other methods take the cluster ids; ``pool`` reduces each cluster to a number. For pairs of equal
units alone see the duplicates that a scan finds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import linkage  # pyright: ignore
from scipy.spatial.distance import squareform  # pyright: ignore
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.random_state import kept_random_state
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.stats import HashSample, HashSampleState, Moments, MomentsState
from sonde.stats.halves import random_halves
from sonde.stats.sampled_rows import LEAST_FOR_HALVES

HALVES, SHUFFLES, FEW_SHUFFLES = 10, 20, 5
NARROW = 128


@final
@dataclass(frozen=True, kw_only=True)
class UnitClustersResult(Result):
    """Mean correlation inside clusters, ``across`` between them; ``cluster`` holds unit ids.

    Clusters are numbered by their first unit; units that never vary share a cluster of their own,
    the last. ``stability`` is the mean adjusted Rand index of clusters of random halves of the
    sample against all rows, NaN with too few groups.
    """

    direction: Direction = "higher"
    across: float
    stability: float
    cluster: Int[Tensor, "dim"]
    n_clusters: int

    def pool(
        self, x: Float[Tensor, "*axes dim"], how: Literal["mean", "max"] = "mean"
    ) -> Float[Tensor, "*axes cluster"]:
        """Return the mean or the maximum of each cluster's units.

        Raises
        ------
        ShapeError
            If ``x`` has another width than the clustered site.
        """
        if x.shape[-1] != len(self.cluster):
            raise ShapeError(
                f"UnitClustersResult.pool: expected dim={len(self.cluster)}, got {x.shape[-1]}."
            )
        index = self.cluster.to(x.device).expand(x.shape)
        empty = x.new_zeros(*x.shape[:-1], self.n_clusters)
        kind = "amax" if how == "max" else "mean"
        return empty.scatter_reduce(-1, index, x, kind, include_self=False)


@final
@dataclass(frozen=True)
class UnitClusters(Instrument):
    """Clusters of units by average linkage of their correlations.

    Distance ``1 - r`` of two units (``1 - |r|`` with ``absolute``); the two clusters of least mean
    distance are joined until ``k`` are left, except joins to more than ``largest`` units. The
    value is the mean correlation of two units of a cluster, over all clusters with two or more.

    Range        [-1, 1]; higher = tighter clusters. The null is the mean value of the same
                 correlations shuffled among pairs: what choosing clusters gives without clusters.
    Cost         one pass; state 8 dim^2 bytes and a sample; result O(dim^2), 16 to 31 times
                 (with ``largest``: up to O(dim^3)).
    Assumes      more rows than a few times ``dim``.
    Differs      definitions are ours; the limit of a size follows the paper's code.

    Parameters
    ----------
    k : int, default=5
        Clusters, of units that vary.
    largest : int, optional
        Most units of a cluster; more than ``k`` clusters may then be left.
    absolute : bool, default=False
        Whether units that move against each other belong together.
    m : int, default=2048
        Rows of the sample for ``stability``.

    Examples
    --------
    >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    >>> unit_clusters(x[:, [0, 1, 0]], k=2).cluster.tolist()
    [0, 1, 0]

    References
    ----------
    cococoncepts
    """

    k: int = 5
    largest: int | None = None
    absolute: bool = False
    m: int = SAMPLE

    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "cococoncepts"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"k": 2, "m": 64},
        {"k": 2, "largest": 2, "absolute": True, "m": 64},
    )

    def __post_init__(self) -> None:
        check_ranges(self, k=">= 1", m=">= 1", largest=">= 1")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for moments, and for a sample to test stability."""
        return {"moments": Moments(), "sample": HashSample(self.m)}

    def result(self, moments: MomentsState, sample: HashSampleState) -> UnitClustersResult:
        """Compute the clusters of units."""
        covariance = moments.covariance.detach()
        cluster, r = self._clusters(covariance)
        n = int(cluster.max()) + 1
        varies = ~r.diagonal().isnan()
        same = (cluster[:, None] == cluster) & varies & varies[:, None]
        pairs = ~torch.eye(len(r), dtype=torch.bool, device=r.device) & varies & varies[:, None]
        inside, between = r[same & pairs], r[pairs & ~same]
        none = len(inside) == 0
        return UnitClustersResult(
            value=math.nan if none else float(inside.mean()),
            null=self._null(r[varies][:, varies].cpu()),
            n=moments.n,
            range=(-1.0, 1.0),
            flags=("dead",) if none else (),
            conventions={"linkage": "average", "r": "absolute" if self.absolute else "signed"},
            across=float(between.mean()) if len(between) else math.nan,
            stability=self._stability(cluster, sample),
            cluster=cluster,
            n_clusters=n,
        )

    def _clusters(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return each unit's cluster id, and the correlations; NaN for constant units."""
        spread = covariance.diagonal().clamp(min=0).sqrt()
        varies = spread > 1e-10 * spread.max().clamp(min=1e-300)
        r = covariance / torch.outer(spread, spread)
        r = r.masked_fill(~(varies & varies[:, None]), math.nan)
        r = r.abs() if self.absolute else r
        ids = torch.full((len(r),), -1, dtype=torch.int64)
        alive = varies.cpu().nonzero()[:, 0]
        ids[alive] = _joined(1 - r[varies][:, varies].cpu(), self.k, self.largest or len(r))
        if not bool(varies.all()):
            ids[~varies.cpu()] = int(ids.max()) + 1
        return ids.to(r.device), r

    def _null(self, r: Tensor) -> float:
        """Return the mean value of clusters after correlations are shuffled among unit pairs."""
        n, means = len(r), []
        above = torch.triu_indices(n, n, 1)
        pairs = r[above[0], above[1]].double()
        generator = torch.Generator().manual_seed(0)
        for _ in range(SHUFFLES if n <= NARROW else FEW_SHUFFLES):
            other = torch.eye(n, dtype=torch.float64)
            moved = pairs[torch.randperm(len(pairs), generator=generator)]
            other[above[0], above[1]] = other[above[1], above[0]] = moved
            cluster = _joined(1 - other, self.k, self.largest or n)
            inside = moved[cluster[above[0]] == cluster[above[1]]]
            means += [float(inside.mean())] if len(inside) else []
        return sum(means) / len(means) if means else math.nan

    def _stability(self, cluster: Tensor, sample: HashSampleState) -> float:
        with kept_random_state():
            from sklearn.metrics import adjusted_rand_score

        if len(sample.group.unique()) < LEAST_FOR_HALVES:
            return math.nan
        scores = []
        for half in random_halves(sample.group)[:HALVES]:
            state = Moments().observe(sample.rows[half.to(sample.rows.device)])
            again = self._clusters(state.covariance)[0]
            scores.append(adjusted_rand_score(cluster.tolist(), again.tolist()))
        return sum(scores) / len(scores)


def _joined(distance: Tensor, k: int, largest: int) -> Tensor:
    """Return ids of ``k`` average-linkage clusters, or more if a size limit is exceeded."""
    gap, n = distance.double().numpy().copy(), len(distance)
    merges = _merges(gap, n - k) if largest >= n else _limited_merges(gap, n - k, largest)
    owner = np.arange(n)
    for a, b, new in merges:
        owner[(owner == a) | (owner == b)] = new
    first = {int(o): number for number, o in enumerate(dict.fromkeys(owner.tolist()))}
    return torch.tensor([first[int(o)] for o in owner.tolist()], dtype=torch.int64)


def _merges(gap: np.ndarray, n_merges: int) -> Iterator[tuple[int, int, int]]:
    """Yield the closest pairs of clusters, and the id of the cluster that each pair makes."""
    n = len(gap)
    if n_merges < 1 or n < 2:
        return
    np.fill_diagonal(gap, 0.0)
    joins = linkage(squareform(gap, checks=False), "average")  # pyright: ignore
    for i, (a, b) in enumerate(joins[:n_merges, :2].astype(int).tolist()):
        yield a, b, n + i


def _limited_merges(gap: np.ndarray, n_merges: int, largest: int) -> Iterator[tuple[int, int, int]]:
    """Yield the closest pairs of clusters that have at most ``largest`` units together.

    A pair that is too large stays so, and its distance becomes infinite. Each cluster knows its
    nearest one, which is looked for again only when that one is joined to another.
    """
    n = len(gap)
    size = np.ones(n, dtype=np.int64)
    np.fill_diagonal(gap, np.inf)
    gap[:] = gap if largest > 1 else np.inf
    near = gap.argmin(1)
    best = gap[np.arange(n), near]
    for _ in range(n_merges):
        a = int(best.argmin())
        if not np.isfinite(best[a]):
            return
        a, b = sorted((a, int(near[a])))
        mean = (size[a] * gap[a] + size[b] * gap[b]) / (size[a] + size[b])
        size[a], size[b] = size[a] + size[b], 0
        mean[size[a] + size > largest] = np.inf
        mean[[a, b]] = np.inf
        gap[a], gap[:, a], gap[b], gap[:, b] = mean, mean, np.inf, np.inf
        again = np.flatnonzero((near == a) | (near == b))
        for j in {a, b, *again.tolist()}:
            near[j] = gap[j].argmin()
        best = gap[np.arange(n), near]
        yield a, b, a


unit_clusters = as_function(UnitClusters)
