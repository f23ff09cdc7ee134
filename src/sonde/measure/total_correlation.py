"""Deviation of a site's units from joint independence, for Gaussian rows.

One number for a site. For what two sites tell of each other see ``mutual_information``; for which
units go together, ``covariance``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._factors import unit_correlations
from sonde.measure._flags import moment_flags
from sonde.stats import Moments, MomentsState
from sonde.stats.normal_equations import GRAM_CUT

"""Eigenvalues of the correlations below this are none: a unit follows from others."""


@final
@dataclass(frozen=True, kw_only=True)
class TotalCorrelationResult(Result):
    """Total correlation in nats.

    ``raw`` is the estimate itself and ``bias`` its mean over independent units. With ``debias`` the
    value is their difference and the null is 0. ``n_dead`` constant units took no part.
    """

    direction: Direction = "higher"
    unit: str = "nats"
    raw: float
    bias: float
    n_dead: int


@final
@dataclass(frozen=True)
class TotalCorrelation(Instrument):
    """Sum of the units' entropies minus the row's entropy, for Gaussian rows, in nats.

    ``-1/2 ln det R`` with the correlations ``R`` of the units: 0 where no two are correlated. From
    ``n`` independent rows of ``d`` independent Gaussian units its mean is ``1/2 (d psi((n - 1) / 2)
    - sum_i psi((n - i) / 2))``.

    Range        [0, inf), nats; higher = more redundant. Estimates fall below 0 by chance. Infinite
                 where a unit follows from others (flag ``rank_deficient``). Invariant to
                 permutation, scales of units, shifts.
    Cost         one pass; state 8 (dim^2 + dim) bytes; result O(dim^3).
    Assumes      more rows than units (flag ``few_rows``), and rows that are independent for the
                 bias: tokens of documents have a larger one. Sees linear dependence alone. At
                 independence the error is first-order and too wide.
    Differs      from the paper: entropies are those of Gaussians with the same covariance.

    Parameters
    ----------
    debias : bool, default=True
        Subtract the mean over independent units.

    Examples
    --------
    >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)).double()
    >>> mixed = x @ torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double()).T
    >>> round(total_correlation(mixed).value, 1), round(-0.5 * math.log(1 - 0.9**2), 1)
    (0.8, 0.8)

    References
    ----------
    watanabe1960total
    """

    debias: bool = True
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "watanabe1960total"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"debias": False})

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the site's moments."""
        return {"moments": Moments()}

    def result(
        self, moments: MomentsState, independent: float | None = None
    ) -> TotalCorrelationResult:
        """Compute the determinant of the correlations of units that vary."""
        live = torch.nonzero(moments.variance.detach() > 0).flatten()
        flags = list(moment_flags(moments))
        r = unit_correlations(moments.scatter, moments, moments)[live[:, None], live]
        bias = independent_mean(independent or moments.n, len(live))
        raw = torch.full_like(moments.mean.sum(), math.nan)
        if "dead" not in flags and math.isfinite(bias):
            values = torch.linalg.eigvalsh(r)
            deficient = bool(values[0].detach() <= GRAM_CUT)
            flags += ["rank_deficient"] if deficient else []
            raw = torch.full_like(raw, math.inf) if deficient else -0.5 * values.log().sum()
        return TotalCorrelationResult(
            value=raw - bias if self.debias else raw,
            null=0.0 if self.debias else bias,
            n=moments.n,
            range=(0.0, math.inf),
            flags=tuple(dict.fromkeys(flags)),
            conventions={"rows": "as Gaussian", "debiased": self.debias, "null": "closed form"},
            raw=float(raw.detach()),
            bias=bias,
            n_dead=len(moments.mean) - len(live),
        )


def independent_mean(n: float, dim: int) -> float:
    """Return the mean of ``-1/2 ln det R`` for ``n`` rows of independent Gaussian units.

    NaN with no more rows than units.
    """
    if n <= dim:
        return math.nan
    half = 0.5 * (n - torch.arange(1, dim + 1, dtype=torch.float64))
    terms = torch.special.digamma(half)
    return 0.5 * float((terms[:1] - terms).sum())


total_correlation = as_function(TotalCorrelation)
