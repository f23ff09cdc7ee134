"""Count, mean and centred scatter of rows."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import StateError
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats._product import transposed_product

BLOCK = 64
LEAST_SQUARE = 1e-32
"""Mean square of float32 below which squares lose digits, or vanish (1e-38)."""
STRIP = 128


@dataclass(frozen=True)
class MomentsState(State):
    """Moments of ``n`` rows; ``scatter``: sum of ``(x - mean)(x - mean)^T``, or its diagonal."""

    n: int
    mean: Float[Tensor, "dim"]
    scatter: Float[Tensor, "dim dim"] | Float[Tensor, "dim"]

    @property
    def covariance(self) -> Float[Tensor, "dim dim"] | Float[Tensor, "dim"]:
        """Scatter divided by ``n``."""
        return self.scatter / self.n

    @property
    def second_moment(self) -> Float[Tensor, "dim dim"]:
        """Mean of ``x x^T``, without centring.

        Raises
        ------
        StateError
            If only the diagonal of the scatter was fitted.
        """
        if self.scatter.ndim == 1:
            raise StateError(
                "MomentsState.second_moment: expected a full scatter matrix, got only its "
                "diagonal. Fit Moments(scatter='full')."
            )
        return self.covariance + torch.outer(self.mean, self.mean)

    @property
    def variance(self) -> Float[Tensor, "dim"]:
        """Variance of each unit, with divisor ``n``."""
        return (self.scatter if self.scatter.ndim == 1 else self.scatter.diagonal()) / self.n

    @cached_property
    def eigenvalues(self) -> Float[Tensor, "dim"]:
        """Eigenvalues of the covariance in descending order.

        Raises
        ------
        StateError
            If only variances were kept: they say nothing about directions.
        """
        if self.scatter.ndim == 1:
            raise StateError(
                "MomentsState.eigenvalues: expected a full scatter matrix, got only its "
                'diagonal. Fit Moments("full"), or take the spectrum of a HashSample.'
            )
        return torch.linalg.eigvalsh(self.covariance).flip(0)


@final
@dataclass(frozen=True)
class Moments(Statistic[MomentsState]):
    """Count, mean and centred scatter, independent of how rows are divided.

    Each batch is centred before its product is formed and accumulated in float64, so a large mean
    does not destroy the variance. Merging follows the pairwise update of Chan, Golub and LeVeque.

    Parameters
    ----------
    scatter : {"full", "diag"}, default="full"
        The whole dim x dim matrix, or its diagonal.

    References
    ----------
    chan1983variance
    """

    scatter: Literal["full", "diag"] = "full"

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        """Return the moments of a batch of rows."""
        mean, centred, residual = centre(x)
        n = x.shape[0]
        if self.scatter == "diag":
            scatter = centred_squares(x, mean, centred, residual)
        else:
            scatter = gram(centred)
            scatter -= n * torch.outer(residual, residual)
        return MomentsState(n, mean, scatter)

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        """Return the joined moments."""
        n = a.n + b.n
        delta = b.mean - a.mean
        weight = a.n * b.n / n
        shift = delta.square() if self.scatter == "diag" else torch.outer(delta, delta)
        scatter = a.scatter + b.scatter
        scatter += shift.mul_(weight)  # in place: these may be the largest things in memory
        return MomentsState(n, a.mean + delta * (b.n / n), scatter)

    def influence(
        self, state: MomentsState, gradient: MomentsState, x: Float[Tensor, "row dim"]
    ) -> Float[Tensor, "row"]:
        """Return ``g_mean . z / n + z^T g_scatter z`` with ``z = x - mean``."""
        z = x.to(state.mean) - state.mean
        linear = z @ gradient.mean / state.n
        if self.scatter == "diag":
            return linear + z.square() @ gradient.scatter
        return linear + ((z @ gradient.scatter) * z).sum(1)


def centre(
    x: Float[Tensor, "row dim"],
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "row dim"], Float[Tensor, "dim"]]:
    """Return the float64 mean, the rows minus a rounded mean, and the rounding residual.

    Half-precision rows are widened to float32 first, other types stay. The returned mean includes
    the residual.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    rough = wide.mean(0)
    centred = wide - rough
    residual = column_sum(centred) / len(x)
    return rough.double() + residual, centred, residual


def centred_squares(
    x: Float[Tensor, "row dim"],
    mean: Float[Tensor, "dim"],
    centred: Float[Tensor, "row dim"],
    residual: Float[Tensor, "dim"],
) -> Float[Tensor, "dim"]:
    """Return each column's sum of squared deviations in float64; overwrites ``centred``.

    Columns whose squares would lose digits in float32 are squared in float64.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
    mean, centred, residual : Tensor
        What ``centre`` returned for the rows.
    """
    total = column_sum(centred.square_())
    low = total < len(x) * LEAST_SQUARE
    if centred.dtype == torch.float32 and bool(low.any()):
        rough = mean[low] - residual[low]
        total[low] = (x[:, low].double() - rough).square().sum(0)
    return total - len(x) * residual.square()


def column_sum(x: Float[Tensor, "row dim"]) -> Float[Tensor, "dim"]:
    """Return the sum over rows in float64, from blocks of 64 rows in their own type.

    Several times faster than a float64 sum of float32 rows, and as exact as their products are.
    """
    if x.dtype == torch.float64:
        return x.sum(0)
    whole = len(x) // BLOCK * BLOCK
    total = x[whole:].sum(0, dtype=torch.float64)
    if whole:
        total = total + x[:whole].reshape(-1, BLOCK, x.shape[1]).sum(1).double().sum(0)
    return total


def gram(
    centred: Float[Tensor, "row dim"], products: torch.dtype | None = None
) -> Float[Tensor, "dim dim"]:
    """Return ``z^T z`` in float64, from products of 2,048 rows in ``product_type``.

    On the CPU only strips above the diagonal are multiplied, which wins back most of what float64
    costs; they are mirrored at the end.
    """
    dim, kind = centred.shape[1], products or product_type(centred)
    total = torch.zeros(dim, dim, dtype=torch.float64, device=centred.device)
    width = STRIP if centred.device.type == "cpu" else max(dim, 1)
    for rows in centred.split(2048):
        z = rows.to(kind)
        for i in range(0, dim, width):
            left, right, strip = z[:, i : i + width], z[:, i:], total[i : i + width, i:]
            if kind == torch.float64:
                strip.addmm_(left.T, right)
            else:
                strip += transposed_product(left, right)
    for i in range(width, dim, width):
        total[i:, i - width : i] = total[i - width : i, i:].T
    return total


def product_type(rows: Float[Tensor, "row dim"]) -> torch.dtype:
    """Return the number type of products of rows: float64 on the CPU, else their own.

    Rounding of float32 products fills directions that the rows do not reach. Other devices may
    take up to 64 times as long for float64.
    """
    return torch.float64 if rows.device.type == "cpu" else rows.dtype
