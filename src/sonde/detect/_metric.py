"""Squared distances to points in a whitened space, in chunks of rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.stats.shrinkage import InverseRoot

CHUNK = 4096


@dataclass(frozen=True)
class WhitenedPoints:
    """Whitened points, and the squared distances of rows to the nearest one.

    Rows are taken relative to ``origin`` before they are multiplied, so that a large mean costs no
    digits.
    """

    metric: InverseRoot
    origin: Float[Tensor, "dim"]
    points: Float[Tensor, "point rank"]

    @classmethod
    def of(
        cls, metric: InverseRoot, origin: Float[Tensor, "dim"], means: Float[Tensor, "point dim"]
    ) -> "WhitenedPoints":
        """Return the means, whitened relative to the origin."""
        return cls(metric, origin, metric.whiten(means - origin))

    def centred(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return rows minus the origin, as precise as their type and the metric allow.

        The origin is taken away in two parts, so that its own rounding is not in the gap.
        """
        if x.dtype == torch.float64 or self.metric.is_lossy:
            return x.double() - self.origin.to(x.device)
        x = x if x.dtype == torch.float32 else x.float()
        high = self.origin.to(x)
        low = (self.origin.double() - self.origin.float().double()).to(x)
        return (x - high).sub_(low)

    def nearest(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return each row's squared distance to the nearest point, in the rows' number type."""
        kind = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        points = self.points.to(x.device, torch.float64 if self.metric.is_lossy else kind)
        squares = points.square().sum(1)
        out = x.new_empty(len(x), dtype=kind)
        for start in range(0, len(x), CHUNK):
            white = self.metric.whiten(self.centred(x[start : start + CHUNK]))
            own = points
            if len(points) > 1:  # products choose the point; as a distance they would lose digits
                own = points[torch.addmm(squares, white, points.T, alpha=-2.0).argmin(1)]
            out[start : start + CHUNK] = (white - own).square_().sum(1)
        return out

    def drops(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return the drop of each row's squared distance if one unit is left out.

        With ``P`` the inverse covariance and ``d`` the gap to the nearest point that is
        ``(P d)_j^2 / P_jj``: the squared error of predicting unit ``j`` from the others, in
        units of that error's variance.
        """
        white = self.metric.whiten(self.centred(x))
        root, points = self.metric.root.to(white), self.points.to(white)
        nearest = torch.cdist(white, points).argmin(1) if len(points) > 1 else 0
        gap = white - points[nearest]
        if root.ndim == 1:
            return gap.square()
        scale = root.square().sum(1)
        drop = (gap @ root.T).square() / scale.clamp(min=torch.finfo(root.dtype).tiny)
        return torch.where(scale > 0, drop, torch.zeros_like(drop))


def check_fitted_width(
    owner: str, x: Float[Tensor, "row dim"], dim: int, name: str = "dim"
) -> None:
    """Raise a ``ShapeError`` unless rows have the width that the scorer was fitted on."""
    if x.shape[1] != dim:
        raise ShapeError(
            f"{owner}.score: expected {name}={dim} (as fitted), got {name}={x.shape[1]}. "
            "Fit a second scorer for that site."
        )
