"""Agreement of two sites on which rows are neighbours."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._neighbourhood import copy_flags, without_copies
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState, unit_rows
from sonde.stats.neighbours import nearest
from sonde.stats.sampled_rows import SampledRows

Metric = Literal["cosine", "euclidean"]


@final
@dataclass(frozen=True, kw_only=True)
class MutualKNNResult(Result):
    """Mean fraction of common neighbours; ``jaccard`` divides by the neighbours at either site."""

    direction: Direction = "higher"
    jaccard: float


@final
@dataclass(frozen=True)
class MutualKNN(PairSampleInstrument):
    """Fraction of a row's nearest neighbours at one site that are neighbours at the other.

    ``mean_i |N_x(i) & N_y(i)| / k``. It sees local structure alone: clusters that lie elsewhere, or
    have another shape, count as the same as long as their members stay together.

    Range        [0, 1]; higher = more alike. Invariant to  rotation, isotropic scale; with the
                 Euclidean metric also to shifts.
    Cost         one pass; state ``m`` rows; result O(m^2 dim), never more than 1,024 lines at once.
    Assumes      rows of one group (document) are no neighbours of each other: they are left out.
    Differs      from the paper: no clipping of outlying units. The standard error is
                 .8 to 1.3 of the spread over fresh rows.

    Parameters
    ----------
    k : int, default=10
        Neighbours of each row.
    metric : {"cosine", "euclidean"}, default="cosine"
        Distance between rows. Rows of zeros have no direction (flag ``dead``).
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> mutual_knn(x, 2 * x.flip(1)).value
    1.0

    References
    ----------
    huh2024platonic
    """

    k: int = 10
    metric: Metric = "cosine"
    m: int = SAMPLE
    paper: ClassVar[str] = "huh2024platonic"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"k": 3},
        {"k": 2, "metric": "euclidean", "m": 64},
    )

    def __post_init__(self) -> None:
        check_ranges(self, k=">= 1", metric=("cosine", "euclidean"))

    def result(self, samples: tuple[HashSampleState, HashSampleState]) -> MutualKNNResult:
        """Compare the neighbours of each row."""
        rows = SampledRows.of(samples)
        flags = rows.flags
        if self.metric == "cosine":
            alive = torch.stack([x.ne(0).any(1).cpu() for x in rows.rows]).all(0)
            flags += () if bool(alive.all()) else ("dead",)
            rows = rows.take(alive)
            rows = replace(rows, rows=tuple(unit_rows(x) for x in rows.rows))
        flags += copy_flags(rows.rows, rows.group)
        rows = without_copies(rows)
        conventions = {"k": self.k, "metric": self.metric, "neighbours": "of other groups"}
        few = len(rows) == 0 or self.k >= len(rows) - int(torch.bincount(rows.group).max()) + 1
        if few or any(bool((x == x[:1]).all()) for x in rows.rows):
            return MutualKNNResult(
                n=len(rows),
                range=(0.0, 1.0),
                flags=tuple(dict.fromkeys((*flags, "few_rows" if few else "dead"))),
                conventions=conventions,
                jaccard=float("nan"),
            )
        first, second = (self._neighbours(x, rows.group) for x in rows.rows)
        common = (first[:, :, None] == second[:, None, :]).any(2)
        shared = common.sum(1).double()
        # Rows share neighbours: as a mean of independent rows the error is too small, and too large
        # if each row counts once more as the neighbour of others. It lies midway, by measurement.
        named = torch.bincount(first[common], minlength=len(rows)).double()
        least, how = rows.error_of_mean(shared / self.k)
        most, _ = rows.error_of_mean((shared + named) / self.k)
        se = None if least is None or most is None else (least * most).sqrt()
        size = torch.bincount(rows.group)[rows.group].double().mean()
        return MutualKNNResult(
            value=float(shared.mean() / self.k),
            se=se,
            null=self.k / float(len(rows) - size),
            n=len(rows),
            range=(0.0, 1.0),
            flags=flags,
            conventions={**conventions, "se": how},
            jaccard=float((shared / (2 * self.k - shared)).mean()),
        )

    def _neighbours(
        self, x: Float[Tensor, "row dim"], group: Int[Tensor, "row"]
    ) -> Int[Tensor, "row k"]:
        return nearest(x, x, self.k, group=group, group2=group)[1].cpu()


mutual_knn = as_function(MutualKNN)
