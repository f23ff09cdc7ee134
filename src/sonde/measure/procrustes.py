"""Distance of two sites after the best rotation of one onto the other."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.core.function import as_function
from sonde.core.result import Direction, Result
from sonde.measure._canonical import null_nuclear
from sonde.measure._flags import moment_flags
from sonde.measure._reads import CrossInstrument
from sonde.stats import CrossMomentsState, MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class ProcrustesResult(Result):
    """Squared distance; ``angle`` is a metric on shapes, ``raw`` the unscaled distance."""

    direction: Direction = "lower"
    angle: float
    raw: float


@final
@dataclass(frozen=True)
class Procrustes(CrossInstrument):
    """Squared distance of two sites, centred and of unit norm, after the best rotation.

    ``2 - 2 |C|_* / sqrt(tr S_x tr S_y)`` with the nuclear norm of the cross scatter: what is left
    when one cloud of rows is turned (and mirrored) onto the other. Sites of unequal width are
    compared as if the narrower had units of zeros.

    Range        [0, 2]; lower = more alike. Invariant to  rotation, isotropic scale, shifts.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim^3).
    Assumes      the same rows at both sites; more rows than ``dim`` (flag ``few_rows``).
    Differs      from the paper: the value is the squared distance; ``angle`` is its metric.

    Examples
    --------
    >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> abs(round(procrustes(x, 2 * x.flip(1) + 1).value, 6))
    0.0

    References
    ----------
    williams2021shape
    """

    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "williams2021shape"

    def result(
        self,
        cross: CrossMomentsState,
        each: tuple[MomentsState, MomentsState],
        independent: float | None = None,
    ) -> ProcrustesResult:
        """Compare the nuclear norm with both sites' norms."""
        x, y = each
        flags = tuple(dict.fromkeys(moment_flags(x) + moment_flags(y)))
        sizes = x.scatter.diagonal().sum(), y.scatter.diagonal().sum()
        if "dead" in flags:
            return ProcrustesResult(
                n=cross.n, range=(0.0, 2.0), flags=flags, angle=math.nan, raw=math.nan
            )
        nuclear = torch.linalg.svdvals(cross.cross).sum()
        scale = sizes[0].sqrt() * sizes[1].sqrt()  # their product may be too small for float64
        spread = math.sqrt(cross.n / (independent or cross.n))
        cosine = float((nuclear / scale).detach())
        return ProcrustesResult(
            value=2 - 2 * nuclear / scale,
            null=2 - 2 * null_nuclear(x, y) * spread / float(scale.detach()),
            n=cross.n,
            range=(0.0, 2.0),
            flags=flags,
            conventions={"centered": True, "scaled": True, "mirrors": "allowed"},
            # rounding may carry the cosine of equal clouds beyond 1, where no angle is
            angle=math.acos(min(cosine, 1.0)),
            raw=float((sizes[0] + sizes[1] - 2 * nuclear).detach()),
        )


procrustes = as_function(Procrustes)
