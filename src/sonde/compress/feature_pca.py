"""Code rows of features by their principal components, near the rate-distortion bound."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.compress._range_coder import normal_bytes, read_normal
from sonde.compress._wire import Reader, refuse_others, shape_bytes, tensors_key
from sonde.core.codec import Codec
from sonde.core.errors import InputError
from sonde.stats import Moments, MomentsState


@final
@dataclass(frozen=True, eq=False)
class FeaturePCA(Codec):
    """Principal components of rows, all rounded with one step size.

    Components with a variance above the water level ``D`` are rounded to multiples of
    ``sqrt(12 D)`` and written by a range coder with normal distributions of their variances; the
    others are left at the mean. For normal rows no codec of ``bits`` bits a coordinate has a
    smaller mean squared error than ``D`` in each written component; this one needs up to a quarter
    of a bit a coordinate more than the best codec of the same error.

    Range        float32 in the encoded shape; lossy.
    Cost         O(n dim rank).
    Assumes      rows like those of the fit; a row ``2^20`` steps from their mean is refused. Both
                 sides hold the same fitted codec: the stream has its fingerprint.

    Parameters
    ----------
    mean : Float[Tensor, "dim"]
        Mean of the rows.
    axes : Float[Tensor, "dim rank"]
        Principal axes.
    variances : Float[Tensor, "rank"]
        Variance along each axis.
    step : float
        Step size of the rounding.

    Examples
    --------
    >>> import torch
    >>> rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
    ...     [4.0, 1.0, 0.01]
    ... )
    >>> codec = FeaturePCA.fit(rows, bits=2.0)
    >>> codec.axes.shape[1], 8 * len(codec.encode(rows)) / rows.numel() < 2.4
    (2, True)

    References
    ----------
    goyal2001transform
    """

    mean: Float[Tensor, "dim"]
    axes: Float[Tensor, "dim rank"]
    variances: Float[Tensor, "rank"]
    step: float
    paper: ClassVar[str] = "goyal2001transform"
    examples: ClassVar[tuple[dict, ...]] = ()

    @staticmethod
    def fit(rows: Float[Tensor, "row dim"] | MomentsState, bits: float = 4.0) -> "FeaturePCA":
        """Return the codec of the fitted rows.

        Parameters
        ----------
        rows : Float[Tensor, "row dim"] or MomentsState
            Rows, or their moments, which may be merged from shards.
        bits : float, default=4.0
            For each coordinate, by the theory of normal rows; from 0.

        Raises
        ------
        InputError
            If bits are out of range, or the covariance of the rows is not finite.
        """
        moments = rows if isinstance(rows, MomentsState) else Moments().observe(rows)
        if not 0 <= bits <= 32 or moments.scatter.ndim != 2:
            raise InputError(
                f"FeaturePCA.fit: expected full moments and 0 to 32 bits, got {bits!r} and a "
                f"scatter of shape {tuple(moments.scatter.shape)}."
            )
        if not bool(torch.isfinite(moments.covariance).all()):
            raise InputError(
                f"FeaturePCA.fit: expected at least one row of finite numbers, got "
                f"{int(moments.n)} rows whose covariance is not finite."
            )
        variances, axes = torch.linalg.eigh(moments.covariance)
        variances, axes = variances.flip(0), axes.flip(1)
        level, rank = water_level(variances, bits * len(variances))
        step = (12 * level) ** 0.5
        return FeaturePCA(moments.mean, axes[:, :rank].contiguous(), variances[:rank], step)

    @property
    def width(self) -> int:
        """Width of the fitted rows."""
        return len(self.mean)

    def most_lost(self, x: Tensor) -> float:
        """Return the fraction lost by omitted components and by half a step in the others."""
        rows = x.double().reshape(-1, self.width) - self.mean
        left = rows - rows @ self.axes @ self.axes.T
        lost = float(left.square().sum()) + len(rows) * self.axes.shape[1] * self.step**2 / 4
        norm = float(x.double().square().sum())
        return lost / norm if norm else float("inf")

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, fingerprint and the rounded components."""
        rows = x.double().reshape(-1, self.width) - self.mean
        codes = (rows @ self.axes / self.step).round().reshape(-1).numpy()
        means, scales = self._normals(len(rows))
        return shape_bytes(x) + self._key() + normal_bytes("FeaturePCA", codes, means, scales)

    def unpack(self, payload: bytes) -> Tensor:
        """Return the rows of the rounded components."""
        reader = Reader("FeaturePCA", payload)
        shape = reader.shape()
        refuse_others(reader, self._key())
        n = torch.Size(shape[:-1]).numel()
        codes = torch.from_numpy(read_normal(reader, *self._normals(n))).double()
        rows = self.mean + self.step * codes.reshape(n, self.axes.shape[1]) @ self.axes.T
        return rows.float().reshape(shape)

    def _normals(self, n: int) -> tuple:
        scales = (self.variances.sqrt() / self.step).expand(n, -1).reshape(-1).contiguous().numpy()
        return 0 * scales, scales

    def _key(self) -> bytes:
        step = torch.tensor(self.step, dtype=torch.float64)
        return tensors_key(self.mean, self.axes, self.variances, step)


def water_level(variances: Float[Tensor, "dim"], bits: float) -> tuple[float, int]:
    """Return the distortion at a number of bits, and the number of components that get bits.

    With variances in descending order and ``k`` of them above the level ``D``,
    ``sum_{i <= k} log2(variance_i / D) / 2 = bits``.
    """
    positive = variances[variances > variances[0].clamp(min=0) * 1e-14].double()
    total = positive.log2().cumsum(0)
    for k in range(len(positive), 0, -1):
        level = float(2 ** ((total[k - 1] - 2 * bits) / k))
        if level < positive[k - 1]:
            return level, k
    return float(positive[0]) if len(positive) else 1.0, 0
