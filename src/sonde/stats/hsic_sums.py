"""Sums for the unbiased HSIC of two sites without an n x n matrix."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.state import State
from sonde.core.statistic import Span, Statistic
from sonde.stats._product import transposed_product
from sonde.stats.fourier import FourierFeatures

Terms = Literal["xy", "xx", "yy"]


@dataclass(frozen=True)
class HsicSumsState(State):
    """Sums over ``n`` rows taken relative to a reference point of each side.

    With ``u = x - reference_x``, ``v = y - reference_y``: ``cross`` sums ``u v^T``; ``sum_x`` and
    ``sum_y`` the rows; ``square_x``, ``square_y`` and ``squares`` sum ``|u|^2``, ``|v|^2`` and
    their product; ``tilt_y`` sums ``|u|^2 v`` and ``tilt_x`` sums ``|v|^2 u``.
    """

    n: int
    reference_x: Float[Tensor, "dim"]
    reference_y: Float[Tensor, "dim2"]
    cross: Float[Tensor, "dim dim2"]
    sum_x: Float[Tensor, "dim"]
    sum_y: Float[Tensor, "dim2"]
    square_x: Float[Tensor, ""]
    square_y: Float[Tensor, ""]
    squares: Float[Tensor, ""]
    tilt_x: Float[Tensor, "dim"]
    tilt_y: Float[Tensor, "dim2"]

    @property
    def hsic(self) -> Float[Tensor, ""]:
        """The unbiased HSIC with linear kernels; NaN below 4 rows."""
        n, sx, sy = self.n, self.sum_x, self.sum_y
        if n < 4:
            return self.square_x * torch.nan
        trace = self.cross.square().sum() - self.squares
        totals = (sx @ sx - self.square_x) * (sy @ sy - self.square_y)
        rows = sx @ self.cross @ sy - sy @ self.tilt_y - sx @ self.tilt_x + self.squares
        # As floats: products of counts leave 64 bits from 3e9 rows on.
        value = trace + totals / float((n - 1) * (n - 2)) - 2 * rows / (n - 2)
        return value / float(n * (n - 3))

    def moved(
        self, reference_x: Float[Tensor, "dim"], reference_y: Float[Tensor, "dim2"]
    ) -> "HsicSumsState":
        """Return the sums relative to other reference points."""
        n, a, b = self.n, reference_x - self.reference_x, reference_y - self.reference_y
        sx, sy, cross = self.sum_x, self.sum_y, self.cross
        aa, bb = a @ a, b @ b
        square_x = self.square_x - 2 * (a @ sx) + n * aa
        square_y = self.square_y - 2 * (b @ sy) + n * bb
        squares = (
            self.squares
            - 2 * (b @ self.tilt_y)
            + bb * self.square_x
            - 2 * (a @ self.tilt_x)
            + 4 * (a @ cross @ b)
            - 2 * bb * (a @ sx)
            + aa * self.square_y
            - 2 * aa * (b @ sy)
            + n * aa * bb
        )
        shift = torch.outer(a, sy) + torch.outer(sx, b) - n * torch.outer(a, b)
        return HsicSumsState(
            n,
            reference_x,
            reference_y,
            cross - shift,
            sx - n * a,
            sy - n * b,
            square_x,
            square_y,
            squares,
            self.tilt_x - 2 * (cross @ b) + bb * sx - a * square_y,
            self.tilt_y - 2 * (a @ cross) + aa * sy - b * square_x,
        )

    @property
    def has_drifted(self) -> bool:
        """True if the mean is so far from the reference that precision is lost."""
        return bool(self.sum_x @ self.sum_x > 0.5 * self.n * self.square_x) or bool(
            self.sum_y @ self.sum_y > 0.5 * self.n * self.square_y
        )

    def centred(self) -> "HsicSumsState":
        """Return the sums relative to the means."""
        return self.moved(
            self.reference_x + self.sum_x / self.n, self.reference_y + self.sum_y / self.n
        )


@final
@dataclass(frozen=True)
class HsicSums(Statistic[HsicSumsState]):
    """Sums for the unbiased HSIC and CKA of a pair of sites, independent of how rows are divided.

    Rows are taken relative to a reference point, the mean of a state's first batch, so that a large
    mean costs no digits; on a merge one side moves to the other's reference, which is exact.

    Parameters
    ----------
    terms : {"xy", "xx", "yy"}, default="xy"
        The pair itself, or one of its sides with itself, on the rows that both sites have.
    features_x, features_y : FourierFeatures, optional
        Random features instead of the rows, for a Gaussian kernel. For ``xx`` the two maps of the
        same rows must differ in their seed.

    References
    ----------
    song2012hsic
    """

    span: ClassVar[Span] = "pair"
    terms: Terms = "xy"
    features_x: FourierFeatures | None = None
    features_y: FourierFeatures | None = None

    def observe(self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"]) -> HsicSumsState:
        """Return the sums of a batch of paired rows, relative to its means."""
        x, y = sides(x, y, self.terms, self.features_x, self.features_y)
        reference_x, u = relative(x)
        reference_y, v = relative(y)
        cross = cross_gram(u, v)
        u, v = u.double(), v.double()
        square_u, square_v = u.square().sum(1), v.square().sum(1)
        return HsicSumsState(
            len(x),
            reference_x,
            reference_y,
            cross,
            u.sum(0),
            v.sum(0),
            square_u.sum(),
            square_v.sum(),
            square_u @ square_v,
            square_v @ u,
            square_u @ v,
        )

    def merge(self, a: HsicSumsState, b: HsicSumsState) -> HsicSumsState:
        """Return the joined sums."""
        return merge_referenced(a, b)

    def influence(
        self,
        state: HsicSumsState,
        gradient: HsicSumsState,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
    ) -> Float[Tensor, "row"]:
        """Return the gradient times each row's contribution to the sums."""
        x, y = sides(x, y, self.terms, self.features_x, self.features_y)
        u, v = (
            x.to(state.reference_x) - state.reference_x,
            y.to(state.reference_y) - state.reference_y,
        )
        square_u, square_v = u.square().sum(1), v.square().sum(1)
        return (
            ((u @ gradient.cross) * v).sum(1)
            + u @ gradient.sum_x
            + v @ gradient.sum_y
            + square_u * gradient.square_x
            + square_v * gradient.square_y
            + square_u * square_v * gradient.squares
            + square_v * (u @ gradient.tilt_x)
            + square_u * (v @ gradient.tilt_y)
        )


def sides(
    x: Tensor, y: Tensor, terms: Terms, *features: FourierFeatures | None
) -> tuple[Tensor, Tensor]:
    """Return both compared sides: rows, or their random features."""
    first, second = (
        rows if of is None else of(rows)
        for rows, of in zip(
            {"xy": (x, y), "xx": (x, x), "yy": (y, y)}[terms], features, strict=True
        )
    )
    return first, second


def relative(x: Float[Tensor, "row dim"]) -> tuple[Float[Tensor, "dim"], Float[Tensor, "row dim"]]:
    """Return an exact reference near the mean, and the rows minus it."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    reference = wide.mean(0, dtype=torch.float64).to(wide.dtype)
    return reference.double(), wide - reference


def cross_gram(
    u: Float[Tensor, "row dim"], v: Float[Tensor, "row dim2"]
) -> Float[Tensor, "dim dim2"]:
    """Return ``u^T v`` in float64: products in the rows' type, chunks of 4,096 added in float64."""
    kind = torch.promote_types(u.dtype, v.dtype)
    total = torch.zeros(u.shape[1], v.shape[1], dtype=torch.float64, device=u.device)
    for a, b in zip(u.to(kind).split(4096), v.to(kind).split(4096), strict=True):
        total += transposed_product(a, b).double()
    return total


def merge_referenced(a: Any, b: Any) -> Any:
    """Return the sum of two states; the reference of the larger state is kept.

    Between equals the reference whose bytes sort first wins, so that the order of merging does not
    matter. A sum whose mean has drifted from the reference moves to its mean.
    """
    if _rank(b) < _rank(a):
        a, b = b, a
    if not torch.equal(a.reference_x, b.reference_x) or not torch.equal(
        a.reference_y, b.reference_y
    ):
        b = b.moved(a.reference_x, a.reference_y)
    added = {
        f.name: getattr(a, f.name) + getattr(b, f.name)
        for f in fields(a)
        if not f.name.startswith("reference")
    }
    total = replace(a, **added)
    return total.centred() if total.has_drifted else total


def _rank(state: Any) -> tuple[float, bytes]:
    reference = torch.cat([state.reference_x, state.reference_y]).detach().cpu()
    return -float(state.n), reference.numpy().tobytes()
