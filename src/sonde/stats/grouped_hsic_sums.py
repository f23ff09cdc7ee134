"""Unbiased HSIC for grouped rows: sample a group, then a row in it."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.state import State
from sonde.core.statistic import Span, Statistic
from sonde.stats.fourier import FourierFeatures
from sonde.stats.hsic_sums import Terms, merge_referenced, relative, sides


@dataclass(frozen=True)
class GroupedHsicSumsState(State):
    """Sums over groups relative to each side's reference point; ``weight`` is their number.

    A group's own values are means over rows: ``X = mean u v^T``, ``x = mean u``, ``y = mean v``.
    ``cross`` sums ``X``; ``outer`` sums ``x y^T``; ``sum_x``, ``sum_y`` the means; ``square_x``,
    ``square_y``, ``squares`` sum ``|x|^2``, ``|y|^2`` and their product; ``norms`` sums ``|X|^2``,
    ``form`` sums ``x^T X y``, ``image_x`` sums ``X y``, ``image_y`` sums ``X^T x``, ``tilt_x`` sums
    ``|y|^2 x`` and ``tilt_y`` sums ``|x|^2 y``.
    """

    weight: Float[Tensor, ""]
    reference_x: Float[Tensor, "dim"]
    reference_y: Float[Tensor, "dim2"]
    cross: Float[Tensor, "dim dim2"]
    outer: Float[Tensor, "dim dim2"]
    sum_x: Float[Tensor, "dim"]
    sum_y: Float[Tensor, "dim2"]
    square_x: Float[Tensor, ""]
    square_y: Float[Tensor, ""]
    squares: Float[Tensor, ""]
    norms: Float[Tensor, ""]
    form: Float[Tensor, ""]
    image_x: Float[Tensor, "dim"]
    image_y: Float[Tensor, "dim2"]
    tilt_x: Float[Tensor, "dim"]
    tilt_y: Float[Tensor, "dim2"]

    @property
    def n(self) -> int:
        """Number of groups."""
        return round(float(self.weight.detach()))

    @property
    def hsic(self) -> Float[Tensor, ""]:
        """HSIC averaged over distinct groups; NaN below 4 groups."""
        g, sx, sy = self.weight, self.sum_x, self.sum_y
        if self.n < 4:
            return self.norms * torch.nan
        two = self.cross.square().sum() - self.norms
        three = (
            sx @ self.cross @ sy
            - sx @ self.image_x
            - sy @ self.image_y
            + 2 * self.form
            - (self.cross * self.outer).sum()
        )
        row = sx @ self.outer @ sy - sy @ self.tilt_y - sx @ self.tilt_x + self.squares
        four = (
            (sx @ sx - self.square_x) * (sy @ sy - self.square_y)
            - 4 * row
            + 2 * (self.outer.square().sum() - self.squares)
        )
        pairs = g * (g - 1)
        return two / pairs - 2 * three / (pairs * (g - 2)) + four / (pairs * (g - 2) * (g - 3))

    @property
    def has_drifted(self) -> bool:
        """True if the mean is so far from the reference that precision is lost."""
        return bool(self.sum_x @ self.sum_x > 0.5 * self.weight * self.square_x) or bool(
            self.sum_y @ self.sum_y > 0.5 * self.weight * self.square_y
        )

    def centred(self) -> "GroupedHsicSumsState":
        """Return the sums relative to the groups' means."""
        return self.moved(
            self.reference_x + self.sum_x / self.weight, self.reference_y + self.sum_y / self.weight
        )

    def moved(
        self, reference_x: Float[Tensor, "dim"], reference_y: Float[Tensor, "dim2"]
    ) -> "GroupedHsicSumsState":
        """Return the sums relative to other reference points."""
        a, b, g = reference_x - self.reference_x, reference_y - self.reference_y, self.weight
        sx, sy, cross, outer = self.sum_x, self.sum_y, self.cross, self.outer
        aa, bb, asx, bsy = a @ a, b @ b, a @ sx, b @ sy
        square_x, square_y = self.square_x - 2 * asx + g * aa, self.square_y - 2 * bsy + g * bb
        shift = torch.outer(a, sy) + torch.outer(sx, b) - g * torch.outer(a, b)
        across, along = a @ cross @ b, a @ outer @ b
        rest = bb * self.square_x + aa * self.square_y - 2 * bb * asx - 2 * aa * bsy + g * aa * bb
        return GroupedHsicSumsState(
            g,
            reference_x,
            reference_y,
            cross - shift,
            outer - shift,
            sx - g * a,
            sy - g * b,
            square_x,
            square_y,
            self.squares - 2 * (b @ self.tilt_y) - 2 * (a @ self.tilt_x) + 4 * along + rest,
            self.norms
            - 2 * (a @ self.image_x)
            - 2 * (b @ self.image_y)
            + 2 * across
            + 2 * along
            + rest,
            self.form
            - a @ (self.tilt_x + self.image_x)
            - b @ (self.tilt_y + self.image_y)
            + 3 * along
            + across
            + rest,
            self.image_x
            - a * self.square_y
            - (outer + cross) @ b
            + 2 * a * bsy
            + bb * sx
            - g * bb * a,
            self.image_y
            - b * self.square_x
            - a @ (outer + cross)
            + 2 * b * asx
            + aa * sy
            - g * aa * b,
            self.tilt_x - 2 * (outer @ b) + bb * sx - a * square_y,
            self.tilt_y - 2 * (a @ outer) + aa * sy - b * square_x,
        )


@final
@dataclass(frozen=True)
class GroupedHsicSums(Statistic[GroupedHsicSumsState]):
    """Sums for the unbiased HSIC and CKA of a pair of sites with grouped rows.

    Rows of one group are alike at both sites, which lifts every row-wise estimate above its null;
    here only rows of different groups are compared, and every group counts once. With groups of one
    row the value is that of ``HsicSums``. Exact for splits that keep groups whole.

    Parameters
    ----------
    terms : {"xy", "xx", "yy"}, default="xy"
        The pair itself, or one of its sides with itself.
    features_x, features_y : FourierFeatures, optional
        Random Fourier features for each side, as in ``HsicSums``; None compares the rows
        themselves.

    References
    ----------
    song2012hsic
    """

    span: ClassVar[Span] = "pair"
    whole_groups: ClassVar[bool] = True
    terms: Terms = "xy"
    features_x: FourierFeatures | None = None
    features_y: FourierFeatures | None = None

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
        group: Int[Tensor, "row"],
    ) -> GroupedHsicSumsState:
        """Return the sums over the groups of a batch of paired rows."""
        x, y = sides(x, y, self.terms, self.features_x, self.features_y)
        (reference_x, u), (reference_y, v) = relative(x), relative(y)
        _, member = torch.unique(group.to(x.device), return_inverse=True)
        parts = _GroupParts.of(u.double(), v.double(), member)
        one = torch.ones(len(parts.mean_x), dtype=torch.float64, device=x.device)
        return GroupedHsicSumsState(
            one.sum(), reference_x, reference_y, *parts.sums(one, u.double(), v.double())
        )

    def merge(self, a: GroupedHsicSumsState, b: GroupedHsicSumsState) -> GroupedHsicSumsState:
        """Return the joined sums."""
        return merge_referenced(a, b)

    def influence(
        self,
        state: GroupedHsicSumsState,
        gradient: GroupedHsicSumsState,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
        group: Int[Tensor, "row"],
    ) -> Float[Tensor, "row"]:
        """Return each group's effect, divided equally among its rows; groups must be complete."""
        x, y = sides(x, y, self.terms, self.features_x, self.features_y)
        u, v = (
            x.to(state.reference_x) - state.reference_x,
            y.to(state.reference_y) - state.reference_y,
        )
        _, member = torch.unique(group.to(u.device), return_inverse=True)
        parts = _GroupParts.of(u, v, member)
        return (parts.effect(gradient, u, v) / parts.size)[member]


@dataclass(frozen=True)
class _GroupParts:
    """Each group's size, means, ``X y``, ``X^T x`` and ``|X|^2``, and each row's group."""

    member: Int[Tensor, "row"]
    size: Float[Tensor, "group"]
    mean_x: Float[Tensor, "group dim"]
    mean_y: Float[Tensor, "group dim2"]
    image_x: Float[Tensor, "group dim"]
    image_y: Float[Tensor, "group dim2"]
    norm: Float[Tensor, "group"]

    @classmethod
    def of(cls, u: Tensor, v: Tensor, member: Tensor) -> "_GroupParts":
        size = torch.bincount(member).double()

        def mean(rows: Tensor) -> Tensor:
            out = torch.zeros(len(size), rows.shape[1], dtype=rows.dtype, device=rows.device)
            return out.index_add_(0, member, rows) / size[:, None]

        mean_x, mean_y = mean(u), mean(v)
        image_x = mean(u * (v * mean_y[member]).sum(1, keepdim=True))
        image_y = mean(v * (u * mean_x[member]).sum(1, keepdim=True))
        return cls(member, size, mean_x, mean_y, image_x, image_y, _norms(u, v, member, size))

    def sums(self, one: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Return the sums over groups in the state's field order after the references."""
        x, y = self.mean_x, self.mean_y
        square_x, square_y = x.square().sum(1), y.square().sum(1)
        share = (1 / self.size)[self.member][:, None]
        return (
            (u * share).T @ v,
            x.T @ y,
            one @ x,
            one @ y,
            square_x.sum(),
            square_y.sum(),
            square_x @ square_y,
            self.norm.sum(),
            (x * self.image_x).sum(),
            one @ self.image_x,
            one @ self.image_y,
            square_y @ x,
            square_x @ y,
        )

    def effect(self, g: GroupedHsicSumsState, u: Tensor, v: Tensor) -> Float[Tensor, "group"]:
        """Return the gradient times each group's contribution to the sums."""
        x, y = self.mean_x, self.mean_y
        square_x, square_y = x.square().sum(1), y.square().sum(1)
        cross = torch.zeros_like(self.size)
        cross.index_add_(0, self.member, ((u @ g.cross) * v).sum(1))
        return (
            g.weight
            + cross / self.size
            + ((x @ g.outer) * y).sum(1)
            + x @ g.sum_x
            + y @ g.sum_y
            + square_x * g.square_x
            + square_y * g.square_y
            + square_x * square_y * g.squares
            + self.norm * g.norms
            + (x * self.image_x).sum(1) * g.form
            + self.image_x @ g.image_x
            + self.image_y @ g.image_y
            + square_y * (x @ g.tilt_x)
            + square_x * (y @ g.tilt_y)
        )


def _norms(u: Tensor, v: Tensor, member: Tensor, size: Tensor) -> Float[Tensor, "group"]:
    """Return each group's ``|mean u v^T|^2``, by Gram matrices for groups of few rows."""
    if bool((size == 1).all()):
        out = torch.zeros_like(size)
        return out.index_add_(0, member, u.square().sum(1) * v.square().sum(1))
    order = torch.argsort(member, stable=True)
    cuts = [int(s) for s in size.tolist()]
    pieces = zip(u[order].split(cuts), v[order].split(cuts), strict=True)
    few = u.shape[1] * v.shape[1] / (u.shape[1] + v.shape[1])
    return torch.stack(
        [
            ((a @ a.T) * (b @ b.T)).mean() if len(a) < few else (a.T @ b / len(a)).square().sum()
            for a, b in pieces
        ]
    )
