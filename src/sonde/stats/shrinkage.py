"""Shrunk covariances and their inverse roots, the metric of all Gaussian methods.

Nothing here adds an absolute ridge: a covariance has a scale, and a ridge that ignores it turns
into no ridge at all or into the whole metric.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError

Shrinkage = float | Literal["oas"]
LARGEST_LOSS = 256.0


def check_shrinkage(owner: str, shrinkage: Shrinkage) -> None:
    """Raise an ``InputError`` unless ``shrinkage`` is "oas" or a number in [0, 1].

    Parameters
    ----------
    owner : str
        Name of the class that asks; the error begins with it.
    shrinkage : float or "oas"
        The value to check.
    """
    if shrinkage == "oas" if isinstance(shrinkage, str) else 0.0 <= shrinkage <= 1.0:
        return
    raise InputError(f"{owner}: expected shrinkage 'oas' or a number in [0, 1], got {shrinkage!r}.")


def oas_weight(
    covariance: Float[Tensor, "dim dim"] | Float[Tensor, "dim"], n: int
) -> Float[Tensor, ""]:
    """Return the identity's weight that minimises the expected squared error (OAS).

    For a matrix: oracle approximating shrinkage, from the covariance and the number of rows alone.
    For variances (a vector): the minimum of the same risk over diagonal matrices, for normal rows.
    It is ``s / sum (v - mean v)^2``, at most 1, with ``s = 2 sum v^2 / n``: the observed spread
    holds both the true spread and the noise ``s``.

    Parameters
    ----------
    covariance : Float[Tensor, "dim dim"] or Float[Tensor, "dim"]
        Sample covariance, or the variances alone.
    n : int
        Number of rows that the covariance was computed from.

    References
    ----------
    chen2010oas
    """
    dim = covariance.shape[0]
    if covariance.ndim == 1:
        noise = 2.0 * covariance.square().sum() / n
        spread = (covariance - covariance.mean()).square().sum()
        return (noise / spread.clamp(min=torch.finfo(spread.dtype).tiny)).clamp(max=1.0)
    mu = covariance.diagonal().mean()
    alpha = covariance.square().mean()
    rest = (n + 1.0) * (alpha - mu.square() / dim)
    if bool(rest <= 0):
        return torch.ones_like(mu)
    return ((alpha + mu.square()) / rest).clamp(max=1.0)


def shrunk(
    covariance: Float[Tensor, "dim dim"] | Float[Tensor, "dim"], n: int, shrinkage: Shrinkage
) -> tuple[Float[Tensor, "dim dim"] | Float[Tensor, "dim"], Float[Tensor, ""]]:
    """Return ``(1 - w) S + w (tr S / dim) I`` and the weight ``w``.

    Parameters
    ----------
    covariance : Float[Tensor, "dim dim"] or Float[Tensor, "dim"]
        Sample covariance, or the variances alone.
    n : int
        Number of rows that the covariance was computed from.
    shrinkage : float or "oas"
        Weight of the identity in [0, 1]; ``"oas"`` computes it.
    """
    if shrinkage == "oas":
        weight = oas_weight(covariance, n)
    else:
        weight = torch.as_tensor(shrinkage, dtype=covariance.dtype, device=covariance.device)
    if covariance.ndim == 1:
        return (1.0 - weight) * covariance + weight * covariance.mean(), weight
    scale = covariance.diagonal().mean()
    target = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device) * scale
    return (1.0 - weight) * covariance + weight * target, weight


@dataclass(frozen=True)
class InverseRoot:
    """A whitening map: rows of ``x @ root`` (or ``x * root``) have identity covariance.

    Directions in which the covariance has no variance are left out of ``root`` and kept as the
    orthonormal columns of ``null``. The columns of ``outside`` span the same directions. They scale
    rows to unit variance if the variance there is the largest that rounding cannot distinguish from
    0. ``loss`` is the factor by which whitening amplifies the rounding of a row.

    Parameters
    ----------
    root : Float[Tensor, "dim rank"] or Float[Tensor, "dim"]
        Inverse square root of the covariance; a vector for variances alone.
    null : Float[Tensor, "dim nullity"]
        Orthonormal directions without variance, one in each column.
    outside : Float[Tensor, "dim nullity"] or Float[Tensor, "dim"]
        The directions of ``null``, scaled to the largest variance that rounding hides.
    loss : float
        Factor by which whitening amplifies the rounding of a row.
    shrinkage : float
        Weight in [0, 1] of the scaled identity in the covariance.
    rank : int
        Number of directions with variance.
    """

    root: Float[Tensor, "dim rank"] | Float[Tensor, "dim"]
    null: Float[Tensor, "dim _nullity"]
    outside: Float[Tensor, "dim _nullity"] | Float[Tensor, "dim"]
    loss: float
    shrinkage: float
    rank: int

    @property
    def is_lossy(self) -> bool:
        """True if float32 rows are whitened in float64 to keep their precision."""
        return self.loss > LARGEST_LOSS

    def reaching_outside(self) -> "InverseRoot":
        """Return the map that also measures directions without variance, on their own scale."""
        if self.root.ndim == 1:
            return replace(self, root=self.root + self.outside)
        loss = math.inf if self.null.shape[1] else self.loss
        return replace(self, root=torch.cat([self.root, self.outside], 1), loss=loss)

    def whiten(self, z: Float[Tensor, "row dim"]) -> Float[Tensor, "row _rank"]:
        """Return centred rows, whitened by the covariance.

        In the type of the rows, or in float64 where that would lose digits.
        """
        z = z.double() if self.is_lossy else z
        fits = z.dtype == torch.float32 and z.device == self.root.device
        root = self._single if fits else self.root.to(z)
        return z * root if root.ndim == 1 else z @ root

    @cached_property
    def _single(self) -> Tensor:
        """The root in float32, cached since conversion costs more than a small product."""
        with torch.inference_mode(False):
            return self.root.float()

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def null_energy(self, z: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return each centred row's energy fraction in directions without fitted variance."""
        square = z.square().sum(1)
        lost = (z @ self.null.to(z.dtype)).square().sum(1)
        return torch.where(square > 0, lost / square, torch.zeros_like(square))


def inverse_root(
    scatter: Float[Tensor, "dim dim"] | Float[Tensor, "dim"],
    n: int,
    shrinkage: Shrinkage = "oas",
) -> InverseRoot:
    """Return the inverse square root of the shrunk covariance ``scatter / n``.

    Units are brought to one scale first, so that badly scaled ones cost no digits.

    Parameters
    ----------
    scatter : Float[Tensor, "dim dim"] or Float[Tensor, "dim"]
        Sum of ``(x - mean)(x - mean)^T``, or its diagonal.
    n : int
        Number of rows.
    shrinkage : float or "oas", default="oas"
        Weight of the scaled identity.
    """
    covariance, weight = shrunk(scatter / n, n, shrinkage)
    dim = covariance.shape[0]
    used = float(weight) if math.isfinite(float(weight)) else 0.0
    floor = dim * torch.finfo(torch.float64).eps
    variance = (covariance if covariance.ndim == 1 else covariance.diagonal()).clamp(min=0.0)
    least = floor * variance.max()
    live = variance > least
    scale = torch.where(live, variance, torch.ones_like(variance)).sqrt()
    spare = torch.where(least > 0, least.rsqrt(), torch.zeros_like(least))
    eye = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    if covariance.ndim == 1:
        root, outside = live / scale, ~live * spare
        return InverseRoot(root, eye[:, ~live], outside, 1.0, used, int(live.sum()))
    correlation = torch.where(live[:, None] & live, covariance / scale[:, None] / scale, 0.0)
    values, vectors = torch.linalg.eigh(correlation)
    keep = values > floor * values[-1].clamp(min=0.0)
    root = vectors[:, keep] * values[keep].rsqrt() / scale[:, None]
    null = torch.linalg.qr(vectors[:, ~keep] / scale[:, None]).Q
    none = (floor * values[-1].clamp(min=0.0)).sqrt()
    own = torch.where(live & (none > 0), 1.0 / (scale * none), spare)
    rank = int(keep.sum())
    loss = float(values[keep][0].rsqrt()) if rank else 1.0
    return InverseRoot(root, null, vectors[:, ~keep] * own[:, None], loss, used, rank)
