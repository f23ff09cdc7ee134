"""Intrinsic dimension of a site from each row's distances to its nearest neighbours."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._neighbourhood import (
    Neighbourhood,
    nearest_distance,
    neighbour_distances,
    null_dimension,
)
from sonde.measure._reads import SampleInstrument
from sonde.stats import HashSampleState
from sonde.stats.sampled_rows import SampledRows


@final
@dataclass(frozen=True, kw_only=True)
class MLEDimensionResult(Result):
    """Intrinsic dimension; ``n_copies`` duplicate rows were removed."""

    direction: Direction = "higher"
    n_copies: int


@final
@dataclass(frozen=True)
class MLEDimension(SampleInstrument):
    """Intrinsic dimension by maximum likelihood from the ``k`` nearest neighbours.

    The number of rows within ``r`` grows as ``r^d``. A row's own estimate is the inverse of the
    mean of ``ln(r_k / r_a)`` over its neighbours ``a < k``; the inverses are averaged over rows. It
    varies less than ``two_nn`` and looks at a wider scale, where surfaces are curved and have
    edges. The null is the estimate for the same rows with each unit's values shuffled.

    Range        (0, inf); higher = more directions. Invariant to rotation, isotropic scale,
                 shifts.
    Cost         one pass; state ``m`` rows; result O(m^2 dim), six times over for the error.
    Assumes      at most some ``2 log10 n`` dimensions (flag ``high_dim``): more are
                 underestimated. Copies of a row are left out. Of each other group (document) only
                 the nearest row is a neighbour.
    Differs      from Levina and Bickel: the mean over rows is harmonic (MacKay and Ghahramani),
                 since the plain mean is too large.

    Parameters
    ----------
    k : int, default=20
        Neighbours of each row, at least 2. With fewer other groups, all of them are taken, and the
        flag ``few_rows`` is set.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> flat = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    >>> round(mle_dimension(torch.nn.functional.pad(flat, (0, 3)), k=10).value)
    2

    References
    ----------
    levina2004mle, mackay2005comments, eckmann1992limits
    """

    k: int = 20
    m: int = SAMPLE
    paper: ClassVar[str] = "levina2004mle"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"k": 5}, {"k": 3, "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, k=">= 2")

    def result(self, sample: HashSampleState) -> MLEDimensionResult:
        """Average the rows' inverse estimates."""
        neighbourhood = Neighbourhood.of(sample)
        k = self._neighbours(neighbourhood.rows)
        value = self._dimension(neighbourhood.rows)
        se, how = neighbourhood.error(self._dimension)
        return MLEDimensionResult(
            value=float(value),
            se=se,
            null=null_dimension(neighbourhood.rows, self._dimension),
            n=neighbourhood.rows.n_groups,
            range=(0.0, math.inf),
            flags=tuple(
                dict.fromkeys(
                    (
                        *neighbourhood.flags_of(value, nearest_distance(neighbourhood.rows)),
                        *(("few_rows",) if k < self.k else ()),
                    )
                )
            ),
            conventions={"k": k, "neighbours": "of other groups", "se": how},
            n_copies=neighbourhood.n_copies,
        )

    def _neighbours(self, rows: SampledRows) -> int:
        """Return how many neighbours a row has, at most ``k``: one in each other group."""
        return min(self.k, rows.n_groups - 1)

    def _dimension(self, rows: SampledRows) -> Float[Tensor, ""]:
        k = self._neighbours(rows)
        if k < 2:
            return torch.tensor(math.nan, dtype=torch.float64)
        near = torch.log(neighbour_distances(rows, k))
        return 1.0 / (near[:, -1:] - near[:, :-1]).mean()


mle_dimension = as_function(MLEDimension)
