"""Dependence of two sites by a kernel divergence: joint density against product density.

A smooth figure without training, on a scale of its own. For nats of Shannon's mutual information
see ``mutual_information``; for a kernel similarity of all rows see ``kernel_cka``.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.result import Direction, Result
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState, quadratic_information
from sonde.stats.fourier import kernel_width
from sonde.stats.sampled_rows import SHUFFLES, SampledRows

NEAR = 0.9


@final
@dataclass(frozen=True, kw_only=True)
class CauchySchwarzInformationResult(Result):
    """The divergence; ``share`` divides it by the geometric mean of both self-divergences.

    ``sigma`` holds the widths of the kernels of both sites.
    """

    direction: Direction = "higher"
    unit: str = "nats"
    share: float
    sigma: tuple[float, float]


@final
@dataclass(frozen=True)
class CauchySchwarzInformation(PairSampleInstrument):
    """Cauchy-Schwarz quadratic mutual information of two sites.

    ``ln V_J + ln V_M - 2 ln V_C`` with kernels ``K = exp(-|x - x'|^2 / (2 sigma^2))`` and ``L`` of
    the rows of each site: ``V_J = mean_ij K_ij L_ij``, ``V_M = mean_ij K_ij mean_ij L_ij``, ``V_C =
    mean_i (mean_j K_ij) (mean_j L_ij)``. It is the divergence of Cauchy and Schwarz between the
    joint density and the product of the densities, each estimated by kernels of width
    ``sigma / sqrt(2)``: 0 where they are equal.

    Range        [0, inf); 0 = independent, higher = more is shared. In logarithms but not Shannon's
                 mutual information: compare values of one ``sigma``. ``share`` is 1 for a site with
                 itself. The null grows with the number of units, as fewer rows are near any other.
                 Invariant to  rotation, isotropic scale, shifts.
                 A width so narrow that no row is near another gives ln m (flag ``saturated``).
    Cost         one pass; state ``m`` rows of each site; result O(m^2 (dim + dim2)), 31 times over.
    Assumes      rows of one group are not alike at both sites for another reason. The null, from
                 shuffles of whole groups, shows what their likeness adds.
    Differs      from the paper: a width by the median rule, a null and an error.

    Parameters
    ----------
    sigma : float, (float, float) or None, default=None
        Width of the kernel of both sites, or of each. None: for each site the median distance of
        different rows, over the square root of 2.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 300, 1, generator=torch.Generator().manual_seed(0))
    >>> found = cauchy_schwarz_information(a, a + b)
    >>> found.value > 5 * found.null
    True

    References
    ----------
    principe2000itl
    """

    sigma: float | tuple[float, float] | None = None
    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "principe2000itl"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"m": 64}, {"sigma": (2.0, 1.0), "m": 64})

    def __post_init__(self) -> None:
        given = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        if not all(w is None or 0.0 < w < math.inf for w in given) or self.m < 1:
            raise InputError(
                "CauchySchwarzInformation: expected sigma above 0 (or None) and m of at least 1, "
                f"got sigma={self.sigma}, m={self.m}."
            )

    def result(
        self, samples: tuple[HashSampleState, HashSampleState]
    ) -> CauchySchwarzInformationResult:
        """Compare the densities of the sampled rows."""
        raw = SampledRows.of(samples)
        x = raw.rows[0]
        rows, widths = self._scaled(raw)
        dead = len(x) < 2 or any(not bool((z != z[:1]).any()) for z in rows.rows)
        value = share = null = math.nan
        se, how = None, "no value"
        if not dead:
            value = float(_divergence(rows))
            own = [float(_divergence(replace(rows, rows=(z, z)))) for z in rows.rows]
            share = value / math.sqrt(own[0] * own[1])
            null = sum(float(_divergence(other)) for other in rows.shuffled()) / SHUFFLES
            # with widths of their own, as other rows would have
            se, how = raw.standard_error(lambda half: _divergence(self._scaled(half)[0]))
        full = value > NEAR * math.log(max(len(x), 1))
        flags = {"dead": dead, "saturated": full}
        return CauchySchwarzInformationResult(
            value=value,
            se=se,
            null=null,
            n=len(rows),
            range=(0.0, math.inf),
            flags=(*rows.flags, *(flag for flag, raised in flags.items() if raised)),
            conventions={
                "kernel": "exp(-d^2 / (2 sigma^2))",
                "pairs": "all, of a row with itself too",
                "null": f"{SHUFFLES} shuffles of groups",
                "se": how,
            },
            share=share,
            sigma=widths,
        )

    def _scaled(self, rows: SampledRows) -> tuple[SampledRows, tuple[float, float]]:
        """Return the rows divided by the kernel widths, and the widths."""
        x, y = rows.rows
        # Of all rows: a width of the first 512 would vary less between halves than between draws.
        sigma = self.sigma or (kernel_width(x, len(x)), kernel_width(y, len(y)))
        widths = sigma if isinstance(sigma, tuple) else (sigma, sigma)
        scaled = tuple((z - z.mean(0)) / w for z, w in zip(rows.rows, widths, strict=True))
        return replace(rows, rows=scaled), widths


def _divergence(rows: SampledRows) -> Float[Tensor, ""]:
    """Return the divergence for rows divided by the kernel widths."""
    x, y = rows.rows
    return quadratic_information(x, y)


cauchy_schwarz_information = as_function(CauchySchwarzInformation)
