"""Similarity of two sites by a Gaussian kernel, from random features: no n x n matrix.

Sees agreement about near neighbours that the linear ``cka`` misses, and depends on a width. For all
rows against all rows of a small sample, ``rsa`` and ``mutual_knn`` need no random features.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Span, Statistic
from sonde.stats import FourierFeatures, HashSample, HashSampleState
from sonde.stats.fourier import WIDTH_ROWS, kernel_width
from sonde.stats.grouped_hsic_sums import GroupedHsicSums, GroupedHsicSumsState
from sonde.stats.hsic_sums import HsicSums, HsicSumsState
from sonde.stats.sampled_rows import SampledRows

Sums = HsicSumsState | GroupedHsicSumsState
ROUNDING = 1e-30
NOISE, WIDE = 4.0, 0.5
"""Largest criterion that rounding can cause; a site of equal rows is below this number."""


@final
@dataclass(frozen=True, kw_only=True)
class KernelWidths(Result):
    """Kernel widths of both sites, computed by the first pass."""

    sigma: tuple[float, float]


@final
@dataclass(frozen=True, kw_only=True)
class KernelCKAResult(Result):
    """Similarity of two sites; ``sigma`` holds their kernel widths.

    ``features_se`` is the spread over draws of as many random features. More rows do not lower it,
    and ``se`` does not include it. It is NaN if rows come in groups.
    """

    direction: Direction = "higher"
    sigma: tuple[float, float]
    features_se: float


@final
@dataclass(frozen=True)
class KernelCKA(Instrument):
    """Centred kernel alignment of two sites with Gaussian kernels, debiased, by random features.

    ``h(K, L) / sqrt(h(K, K) h(L, L))`` with ``K = exp(-|x - x'|^2 / (2 sigma^2))``, ``L`` alike at
    the second site, and the unbiased independence criterion ``h`` of all rows, from sums alone. Two
    independent draws of features stand for each kernel, and no draw is ever compared with itself:
    all three criteria are unbiased, and a site with itself has exactly 1. Unrelated sites give 0 on
    average.

    Range        [0, 1]; beyond both ends by chance, never clamped; higher = more alike.
    Cost         two passes, one where ``sigma`` is given; state 128 m^2 bytes; result O(m^2).
    Assumes      rows of different groups are independent. Near 0 the error is too wide, as that of
                 ``cka`` (flag ``se_first_order``).
    Differs      from the dense form by the random features: ``features_se``, of order 1 / sqrt(m).
                 The biased form is not offered.

    Parameters
    ----------
    sigma : float, (float, float) or None, default=None
        Width of the kernel of both sites, or of each. None: for each site ``scale`` times the
        median distance of different rows among the 512 of smallest draw, over the square root of 2.
        Parts that are fitted separately can be merged if ``sigma`` is given.
    scale : float, default=1.0
        Width of the kernel relative to the rule for None; below 1 nearer neighbours count more.
    m : int, default=256
        Number of frequencies in a draw.
    seed : int, default=0
        Seed of the frequencies.
    grouped : bool or None, default=None
        Compare rows of different groups only, each group counting once. None: if rows come in
        groups, or an example has several rows. A split of the rows must keep groups whole.

    Examples
    --------
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> round(kernel_cka(x, 2 * x + 5).value, 6)
    1.0

    References
    ----------
    kornblith2019cka, rahimi2007rff, song2012hsic
    """

    sigma: float | tuple[float, float] | None = None
    scale: float = 1.0
    m: int = 256
    seed: int = 0
    grouped: bool | None = None
    span: ClassVar[Span] = "pair"
    least_rows: ClassVar[int] = 4
    paper: ClassVar[str] = "kornblith2019cka"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"m": 16},
        {"sigma": (2.0, 1.5), "m": 8},
        {"sigma": 2.0, "m": 8, "grouped": True},
    )

    def __post_init__(self) -> None:
        if not all(0.0 < w < math.inf for w in (*(self._widths or ()), self.scale)):
            raise InputError(
                "KernelCKA: expected sigma (or None) and scale above 0, "
                f"got sigma={self.sigma}, scale={self.scale}."
            )
        check_ranges(self, m=">= 2")

    @property
    def _widths(self) -> tuple[float, ...] | None:
        if self.sigma is None or isinstance(self.sigma, tuple):
            return self.sigma
        return self.sigma, self.sigma

    def in_groups(self) -> "KernelCKA":
        """Return the measure restricted to rows of different groups, unless ``grouped`` is set."""
        return replace(self, grouped=True) if self.grouped is None else self

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for sums of the pair and each site, or a sample to find widths."""
        if self._widths is None:
            return {"samples": HashSample(WIDTH_ROWS)}
        x, y = (
            [FourierFeatures(sigma, self.m, 2 * self.seed + draw) for draw in (0, 1)]
            for sigma in self._widths
        )
        sums = GroupedHsicSums if self.grouped else HsicSums
        return {
            "pair": sums("xy", x[0], y[1]),
            "swapped": sums("xy", x[1], y[0]),
            "first": sums("xx", *x),
            "second": sums("yy", *y),
        }

    def result(
        self,
        samples: tuple[HashSampleState, HashSampleState] | None = None,
        pair: Sums | None = None,
        swapped: Sums | None = None,
        first: Sums | None = None,
        second: Sums | None = None,
    ) -> KernelWidths | KernelCKAResult:
        """Compute the widths, or divide the pair's criterion by the sites' own criteria."""
        if samples is not None:
            x, y = (kernel_width(rows) for rows in SampledRows.of(samples).rows)
            widths = self.scale * x, self.scale * y
            return KernelWidths(n=max(s.n for s in samples), sigma=widths)
        assert pair is not None  # guaranteed by reads
        assert swapped is not None
        assert first is not None
        assert second is not None
        assert self._widths is not None
        x, y = self._widths
        flags: list[str] = []
        value: float | Tensor = math.nan
        xx, yy = first.hsic, second.hsic
        if min(float(xx.detach()), float(yy.detach())) > ROUNDING:
            value = (pair.hsic + swapped.hsic) / 2 / torch.sqrt(xx * yy)
        else:
            flags.append("dead")
        if _is_narrow(first) or _is_narrow(second):
            flags.append("narrow_kernel")
        if abs(float(torch.as_tensor(value).detach())) * pair.n < 3 * math.sqrt(2):
            flags.append("se_first_order")
        return KernelCKAResult(
            value=value,
            null=0.0,
            n=pair.n,
            range=(0.0, 1.0),
            flags=tuple(flags),
            conventions={
                "debiased": True,
                "centered": True,
                "kernel": "Gaussian by random features",
                "m": self.m,
                "seed": self.seed,
                "rows": "groups" if self.grouped else "independent",
            },
            sigma=(x, y),
            features_se=_features_error(pair, swapped, first, second),
        )

    def then(self, result: Result) -> "KernelCKA | None":
        """Return the instrument with the widths computed from the sample."""
        return replace(self, sigma=result.sigma) if isinstance(result, KernelWidths) else None


def _is_narrow(own: Sums) -> bool:
    """Return whether two different rows are unlike for a kernel, as far as its features show.

    The criterion of a kernel that is 0 between all rows is the noise of its random features, about
    ``1 / (m n)``. Very wide kernels have a small criterion too, but a mean of about 1.
    """
    if isinstance(own, GroupedHsicSumsState) or own.n < 4:
        return False
    raw = own.moved(torch.zeros_like(own.reference_x), torch.zeros_like(own.reference_y))
    m, mean = len(own.sum_x) // 2, float(raw.sum_x.detach().square().sum()) / own.n**2
    return mean < WIDE and float(own.hsic.detach()) * m * own.n < NOISE


def _features_error(pair: Sums, swapped: Sums, first: Sums, second: Sums) -> float:
    """Return the value's standard deviation over random features, to first order.

    A kernel is the mean over frequencies and the criterion is linear in each kernel. To first order
    the value is therefore the mean of a two-way table: the effect of each pair of frequencies, one
    from each draw. Rows, columns and residuals of the table give the variance of its mean.
    """
    parts: list[Float[Tensor, "frequency frequency"]] = []
    for sums in (pair, swapped, first, second):
        if isinstance(sums, GroupedHsicSumsState) or sums.n < 4:
            return math.nan
        parts.append(_by_frequency(sums))
    one, other, xx, yy = parts
    size = torch.sqrt(xx.sum() * yy.sum())
    value = (one.sum() + other.sum()) / 2 / size
    own = value * (xx / xx.sum() + yy / yy.sum())
    effect = ((one + other.T) / size - own) / 2 * one.numel()
    m, first_mean, second_mean = len(one), effect.mean(1, keepdim=True), effect.mean(0)
    lines = m * (first_mean.square().sum() + second_mean.square().sum()) / (m - 1)
    rest = (effect - first_mean - second_mean).square().sum() / (m - 1) ** 2
    return float((lines - rest).clamp(min=0).sqrt()) / m


def _by_frequency(sums: HsicSumsState) -> Float[Tensor, "frequency frequency"]:
    """Return each frequency pair's contribution to ``sums.hsic``.

    Relative to 0 every row has the squared length ``1 / m`` in each frequency.
    """
    zeros = torch.zeros_like(sums.reference_x), torch.zeros_like(sums.reference_y)
    raw, n = sums.moved(*zeros), sums.n
    m = len(raw.sum_x) // 2
    x, y = raw.sum_x.detach().reshape(2, m), raw.sum_y.detach().reshape(2, m)
    cross = raw.cross.detach().reshape(2, m, 2, m)
    long_x, long_y = x.square().sum(0)[:, None], y.square().sum(0)
    trace = cross.square().sum((0, 2)) - n / m**2
    totals = (long_x - n / m) * (long_y - n / m)
    rows = torch.einsum("af,afbg,bg->fg", x, cross, y) - (long_x + long_y - n / m) / m
    return (trace + totals / float((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / float(n * (n - 3))


kernel_cka = as_function(KernelCKA, optional=("group",))
