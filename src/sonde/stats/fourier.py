"""Random features of the Gaussian kernel, and their moments."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.core.statistic import Statistic
from sonde.stats.moments import Moments, MomentsState

WIDTH_ROWS = 512


@final
@dataclass(frozen=True)
class FourierFeatures:
    """Feature map whose inner products estimate ``exp(-|x - x'|^2 / (2 sigma^2))``.

    ``phi(x) = [cos(x W), sin(x W)] / sqrt(m)`` with Gaussian ``W`` drawn from the seed, never
    stored. An estimate of a kernel with itself needs two maps of different ``seed``: with one, its
    expectation is off by a term of order ``1 / m``.

    Parameters
    ----------
    sigma : float
        Width of the kernel.
    m : int, default=256
        Number of frequencies.
    seed : int, default=0
        Which frequencies.

    References
    ----------
    rahimi2007rff
    """

    sigma: float
    m: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, sigma="> 0", m=">= 1")

    def __call__(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row feature"]:
        """Return the features of rows, in float64."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (x.shape[1], self.m)
        weights = torch.randn(shape, generator=generator, dtype=torch.float64) / self.sigma
        angles = x.double() @ weights.to(x.device)
        return torch.cat([angles.cos(), angles.sin()], dim=1) / self.m**0.5


def median_sigma(x: Float[Tensor, "row dim"]) -> float:
    """Return the width at which half of the pairs have a kernel of at most ``1/e``.

    ``sigma^2 = median |x - x'|^2 / 2`` over distinct pairs.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows; at least two.
    """
    if len(x) < 2:
        raise InputError(f"median_sigma: expected at least 2 rows, got {len(x)}.")
    return float((torch.pdist(x.double()).square().median() / 2).sqrt())


def kernel_width(x: Float[Tensor, "row dim"], n: int = WIDTH_ROWS) -> float:
    """Return ``median_sigma`` of the first ``n`` rows as the kernel width.

    If at least half of the pairs are equal, only the pairs that differ count; if none differ, the
    width is 1.
    """
    gaps = torch.pdist(x[:n].double())
    gaps = gaps if bool((gaps > 0).sum() * 2 > len(gaps)) else gaps[gaps > 0]
    return float(gaps.median()) / math.sqrt(2) if len(gaps) else 1.0


@final
@dataclass(frozen=True)
class FourierMoments(Statistic[MomentsState]):
    """Moments of rows' random features, for kernel distances and tests, however rows are divided.

    Parameters
    ----------
    features : FourierFeatures
        The map; states of different maps do not merge.
    scatter : bool, default=False
        Keep the whole scatter of the features instead of its diagonal.

    References
    ----------
    rahimi2007rff
    """

    features: FourierFeatures
    scatter: bool = False

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        """Return the moments of a batch's features."""
        return self._moments.observe(self.features(x))

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        """Return the joined moments."""
        return self._moments.merge(a, b)

    def influence(
        self, state: MomentsState, gradient: MomentsState, x: Float[Tensor, "row dim"]
    ) -> Float[Tensor, "row"]:
        """Return the influence of ``Moments`` at the features."""
        return self._moments.influence(state, gradient, self.features(x))

    @property
    def _moments(self) -> Moments:
        return Moments("full" if self.scatter else "diag")
