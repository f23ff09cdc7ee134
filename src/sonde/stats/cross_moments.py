"""Means and centred cross scatter of two sites on the same rows."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.state import State
from sonde.core.statistic import Span, Statistic
from sonde.stats._product import transposed_product
from sonde.stats.moments import centre, product_type


@dataclass(frozen=True)
class CrossMomentsState(State):
    """Moments of ``n`` pairs: ``cross`` is the sum of ``(x - mean_x)(y - mean_y)^T``."""

    n: int
    mean_x: Float[Tensor, "dim"]
    mean_y: Float[Tensor, "dim2"]
    cross: Float[Tensor, "dim dim2"]

    @property
    def covariance(self) -> Float[Tensor, "dim dim2"]:
        """Cross scatter divided by ``n``."""
        return self.cross / self.n


@final
@dataclass(frozen=True)
class CrossMoments(Statistic[CrossMomentsState]):
    """Means and cross scatter of a pair of sites, independent of how rows are divided.

    The scatter of each site alone is not in here: read ``Moments`` beside it, which is shared by
    all pairs that the site is in.

    References
    ----------
    chan1983variance
    """

    span: ClassVar[Span] = "pair"

    def observe(
        self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"]
    ) -> CrossMomentsState:
        """Return the cross moments of a batch of paired rows."""
        mean_x, zx, rx = centre(x)
        mean_y, zy, ry = centre(y)
        kind = torch.promote_types(product_type(zx), product_type(zy))
        cross = torch.zeros(len(rx), len(ry), dtype=torch.float64, device=zx.device)
        for a, b in zip(zx.split(4096), zy.split(4096), strict=True):
            cross += transposed_product(a.to(kind), b.to(kind)).double()
        return CrossMomentsState(len(x), mean_x, mean_y, cross - len(x) * torch.outer(rx, ry))

    def merge(self, a: CrossMomentsState, b: CrossMomentsState) -> CrossMomentsState:
        """Return the joined cross moments."""
        n = a.n + b.n
        dx, dy = b.mean_x - a.mean_x, b.mean_y - a.mean_y
        return CrossMomentsState(
            n,
            a.mean_x + dx * (b.n / n),
            a.mean_y + dy * (b.n / n),
            a.cross + b.cross + (a.n * b.n / n) * torch.outer(dx, dy),
        )

    def influence(
        self,
        state: CrossMomentsState,
        gradient: CrossMomentsState,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
    ) -> Float[Tensor, "row"]:
        """Return ``(g_x . z_x + g_y . z_y) / n + z_x^T g_cross z_y``."""
        zx, zy = x.to(state.mean_x) - state.mean_x, y.to(state.mean_y) - state.mean_y
        linear = (zx @ gradient.mean_x + zy @ gradient.mean_y) / state.n
        return linear + ((zx @ gradient.cross) * zy).sum(1)
