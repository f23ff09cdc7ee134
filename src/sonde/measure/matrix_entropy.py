"""Entropy of the rows' directions, relative to its maximum.

Lengths of rows count for nothing here, as in ``coding_rate`` and ``uniformity``. For a number of
directions that weighs rows by their lengths see ``entropy_rank``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._flags import moment_flags
from sonde.stats import DirectionMoments, Moments, MomentsState
from sonde.stats.white_spectrum import white_mean

NEAR = 0.05


@final
@dataclass(frozen=True, kw_only=True)
class MeanRow(Result):
    """The mean row, computed by the first pass."""

    mean: Float[Tensor, "dim"]


@final
@dataclass(frozen=True, kw_only=True)
class MatrixEntropyResult(Result):
    """Entropy divided by its maximum.

    ``entropy_nats`` is not divided by it; ``n_zero`` rows had no direction.
    """

    direction: Direction = "higher"
    entropy_nats: float
    n_zero: int


@final
@dataclass(frozen=True)
class MatrixEntropy(Instrument):
    """Von Neumann entropy of rows' directions, as a fraction of ``ln dim``.

    ``-sum l ln l / ln dim`` over the eigenvalues ``l`` of the mean of ``u u^T``, with ``u`` the row
    less the mean row, divided by its length. 1 if no direction is preferred, ``ln k / ln dim`` for
    ``k`` equal directions. The null is the value of as many rows of random directions.

    Range        [0, 1]; higher = more evenly spread. Invariant to  rotation, isotropic scale and,
                 centred, shifts.
    Cost         two passes, one where not centred; state 8 dim^2 bytes; result O(dim^3).
    Assumes      more rows than ``dim`` (flag ``few_rows``). A row at the mean has no direction and
                 is left out (flag ``dead``). The error takes the mean row as known; near the null
                 the error is too wide (flag ``se_first_order``).
    Differs      nothing.

    Parameters
    ----------
    centered : bool, default=True
        Take the mean row away first. Else a common offset of all rows counts as a direction.

    Examples
    --------
    >>> rows = torch.eye(8)[:4]
    >>> round(matrix_entropy(rows, centered=False).value, 4), round(math.log(4) / math.log(8), 4)
    (0.6667, 0.6667)

    References
    ----------
    wei2024matrix
    """

    centered: bool = True
    least_rows: ClassVar[int] = 1
    paper: ClassVar[str] = "wei2024matrix"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"centered": False})

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the mean row, or for the directions of the rows."""
        if self.centered:
            return {"rows": Moments("diag")}
        return {"rows": DirectionMoments()}

    def result(
        self, rows: MomentsState, independent: float | None = None
    ) -> MeanRow | MatrixEntropyResult:
        """Compute the mean row, or the entropy."""
        if self.centered:
            return MeanRow(n=rows.n, mean=rows.mean.detach(), flags=moment_flags(rows))
        return _entropy(rows, centered=False, independent=independent)

    def then(self, result: Result) -> Instrument | None:
        """Return the pass that reads directions from the mean row."""
        return _FromMean(result.mean, result.flags) if isinstance(result, MeanRow) else None


@final
@dataclass(frozen=True, eq=False)
class _FromMean(Instrument):
    """The second pass of ``MatrixEntropy``: directions from a known point."""

    mean: Float[Tensor, "dim"]
    flags: tuple[str, ...]

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for directions."""
        return {"rows": _DirectionsFrom(self.mean)}

    def result(self, rows: MomentsState, independent: float | None = None) -> MatrixEntropyResult:
        """Compute the entropy."""
        return _entropy(rows, centered=True, flags=self.flags, independent=independent)


@final
@dataclass(frozen=True, eq=False)
class _DirectionsFrom(Statistic[MomentsState]):
    """Moments of rows' directions from a point, independent of how rows are divided."""

    origin: Float[Tensor, "dim"]

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        """Return the moments of a batch."""
        return DirectionMoments().observe(self._moved(x))

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        """Return the moments of both sets of rows."""
        return DirectionMoments().merge(a, b)

    def influence(
        self, state: MomentsState, gradient: MomentsState, x: Float[Tensor, "row dim"]
    ) -> Float[Tensor, "row"]:
        """Return each row's influence, as in ``DirectionMoments``."""
        return DirectionMoments().influence(state, gradient, self._moved(x))

    def _moved(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        return x.double() - self.origin.to(x.device)


def _entropy(
    rows: MomentsState,
    centered: bool,
    flags: tuple[str, ...] = (),
    independent: float | None = None,
) -> MatrixEntropyResult:
    n, dim = rows.n, len(rows.mean)
    second = rows.covariance + torch.outer(rows.mean, rows.mean)
    share = float(second.detach().diagonal().sum())
    n_zero = round(n * (1.0 - share))
    entropy: Tensor | float = math.nan
    if n_zero < n:
        values = torch.linalg.eigvalsh(second)
        values = values[values.detach() > 0] / share
        entropy = -torch.xlogy(values, values).sum()
    most = math.log(dim)
    white = _white(dim, max(round(independent or n) - centered, 1))
    nats = float(torch.as_tensor(entropy).detach())
    raised_flags = {
        "dead": n_zero > 0 or dim == 1,
        "few_rows": n <= dim,
        "se_first_order": nats > white - NEAR,
    }
    return MatrixEntropyResult(
        value=entropy / most if most else math.nan,
        null=white / most if most else math.nan,
        n=n,
        range=(0.0, 1.0),
        flags=tuple(
            dict.fromkeys([*flags, *(flag for flag, raised in raised_flags.items() if raised)])
        ),
        conventions={"centered": centered, "rows": "unit length", "maximum": "ln dim"},
        entropy_nats=nats,
        n_zero=n_zero,
    )


def _white(dim: int, n: int) -> float:
    """Return the entropy in nats of ``n`` rows with uniform random directions.

    The law of many rows and dimensions is that of rows of different lengths: at unit length the
    eigenvalues vary less, by ``1 / (2 n)`` nats.
    """
    rank, product = white_mean(lambda v: torch.xlogy(v, v), dim, n)
    return min(math.log(rank), math.log(dim) - rank * product / dim + 1 / (2 * max(n, dim)))


matrix_entropy = as_function(MatrixEntropy)
