"""Moments of every class, and of all rows together, in one sketch."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError, StateError
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats.moments import BLOCK, MomentsState, centre, gram

FEW = 32
"""Most classes whose rows are summed by products."""

Scatter = Literal["pooled", "trace", "diag", "full"]
Products = Literal["exact", "fast"]


@dataclass(frozen=True)
class UnlabelledState(State):
    """Moments of the rows without a label; ``weight`` is their number."""

    weight: Float[Tensor, ""]
    mean: Float[Tensor, "dim"]
    scatter: Float[Tensor, "dim dim"] | Float[Tensor, "dim"] | Float[Tensor, ""]


@dataclass(frozen=True)
class ClassMomentsState(State):
    """Moments of each class seen, in ascending order of label.

    ``weight`` is the number of rows of each class as float64: use it, not ``n``, wherever a count
    enters a formula, so that error bars see the effect of a row on its class. ``within`` is summed
    over classes (``pooled``) or has one entry for each class.
    """

    labels: Int[Tensor, "class"]
    weight: Float[Tensor, "class"]
    mean: Float[Tensor, "class dim"]
    within: (
        Float[Tensor, "dim dim"]
        | Float[Tensor, "class dim dim"]
        | Float[Tensor, "class dim"]
        | Float[Tensor, "class"]
    )
    scatter: Scatter
    unlabelled: UnlabelledState | None = None

    @property
    def n(self) -> Int[Tensor, "class"]:
        """Number of rows of each class."""
        return self.weight.detach().round().long()

    @property
    def n_labelled(self) -> int:
        """Number of rows with a label."""
        return int(self.n.sum())

    @property
    def n_rows(self) -> int:
        """Number of all rows."""
        rest = 0 if self.unlabelled is None else round(float(self.unlabelled.weight.detach()))
        return self.n_labelled + rest

    @property
    def grand_mean(self) -> Float[Tensor, "dim"]:
        """Mean of the labelled rows."""
        return _average(self.weight, self.mean)

    @property
    def between(self) -> Float[Tensor, "dim dim"]:
        """Scatter of the class means: ``sum n_k (m_k - m)(m_k - m)^T`` over labelled rows."""
        z = self.mean - self.grand_mean
        return (z * self.weight[:, None]).T @ z

    @property
    def pooled(self) -> Float[Tensor, "dim dim"] | Float[Tensor, "dim"] | Float[Tensor, ""]:
        """Sum of the classes' scatters: a matrix, its diagonal, or its trace."""
        return self.within if self.scatter == "pooled" else self.within.sum(0)

    @property
    def total(self) -> MomentsState:
        """Moments of all rows, including unlabelled ones."""
        if self.scatter == "trace":
            raise StateError(
                "ClassMomentsState.total: expected the scatter of each unit, got "
                'scatter=\'trace\'. Fit ClassMoments(scatter="diag") or "pooled".'
            )
        weight, mean, scatter = self.weight, self.mean, self.pooled
        if self.unlabelled is not None:
            weight = torch.cat([weight, self.unlabelled.weight[None]])
            mean = torch.cat([mean, self.unlabelled.mean[None]])
            scatter = scatter + self.unlabelled.scatter
        grand = _average(weight, mean)
        z = mean - grand
        shift = weight @ z.square() if scatter.ndim == 1 else (z * weight[:, None]).T @ z
        return MomentsState(self.n_rows, grand, scatter + shift)


@final
@dataclass(frozen=True)
class ClassMoments(Statistic[ClassMomentsState]):
    """Count and mean of each class and the scatter within classes, however rows are divided.

    Rows with label -1 are kept apart, so that ``total`` gives the moments of all rows without a
    second sketch.

    Parameters
    ----------
    scatter : {"pooled", "trace", "diag", "full"}, default="pooled"
        Form of the scatter within classes: one matrix summed over classes (``pooled``), or for each
        class its trace, its diagonal or its whole matrix.
    max_classes : int, default=1024
        More distinct labels than this are an error.
    products : {"exact", "fast"}, default="exact"
        How the pooled matrix is multiplied on the CPU: in float64, or in the type of the rows,
        2,048 at a time, and only summed in float64. Fast takes half the time; directions in which
        float32 rows do not vary then hold rounding of some 1e-7 of their units' variances. Means
        are exact either way.

    References
    ----------
    chan1983variance
    """

    scatter: Scatter = "pooled"
    max_classes: int = 1024
    products: Products = "exact"

    def observe(self, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"]) -> ClassMomentsState:
        """Return the class moments of a batch of rows."""
        label = label.to(x.device).long()
        missing = label < 0
        rest = None
        if bool(missing.any()):
            rest, x, label = self._apart(x[missing]), x[~missing], label[~missing]
        labels, member = torch.unique(label, return_inverse=True)
        self._check(len(labels))
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        weight = torch.bincount(member, minlength=len(labels)).double()
        rough = _sums(wide, member, len(labels)) / weight[:, None]
        centred = wide - rough.to(wide.dtype)[member]
        residual = _sums(centred, member, len(labels)) / weight[:, None]
        within = self._within(centred, member, weight, residual)
        mean = rough.to(wide.dtype).double() + residual
        return ClassMomentsState(labels, weight, mean, within, self.scatter, rest)

    def merge(self, a: ClassMomentsState, b: ClassMomentsState) -> ClassMomentsState:
        """Return the joined class moments."""
        labels = torch.unique(torch.cat([a.labels, b.labels]))
        self._check(len(labels))
        wa, wb = _spread(a.weight, a.labels, labels), _spread(b.weight, b.labels, labels)
        mean = _spread(a.mean, a.labels, labels)
        delta = _spread(b.mean, b.labels, labels) - mean
        weight, share = wa + wb, wa * wb / (wa + wb)
        if self.scatter == "pooled":
            within = torch.addmm(a.within, (delta * share[:, None]).T, delta)
            within += b.within  # in place: these may be the largest things in memory
        else:
            within = _spread(a.within, a.labels, labels) + _spread(b.within, b.labels, labels)
            within = within + _outer(delta, self.scatter) * _column(share, within)
        mean = mean + delta * (wb / weight)[:, None]
        rest = _merge_rest(a.unlabelled, b.unlabelled, self.scatter)
        return ClassMomentsState(labels, weight, mean, within, self.scatter, rest)

    def influence(
        self,
        state: ClassMomentsState,
        gradient: ClassMomentsState,
        x: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"],
    ) -> Float[Tensor, "row"]:
        """Return ``g_n[k] + g_mean[k] . z / n[k] + z^T g_within z`` with ``z = x - mean[k]``.

        A row of a class that the state has not seen has no first-order effect.
        """
        x, label = x.to(state.mean), label.to(state.labels)
        effect = torch.zeros(len(x), dtype=state.mean.dtype, device=state.mean.device)
        if len(state.labels):
            k = torch.searchsorted(state.labels, label).clamp(max=len(state.labels) - 1)
            z = x - state.mean[k]
            form = gradient.within if self.scatter == "pooled" else gradient.within[k]
            linear = gradient.weight[k] + (z * gradient.mean[k]).sum(1) / state.weight[k]
            matches = state.labels[k] == label
            effect = torch.where(matches, linear + _quadratic(z, form, self.scatter), effect)
        if state.unlabelled is not None and gradient.unlabelled is not None:
            rest, g = state.unlabelled, gradient.unlabelled
            z = x - rest.mean
            linear = g.weight + z @ g.mean / rest.weight
            effect = torch.where(
                label < 0, linear + _quadratic(z, g.scatter, self.scatter, one=True), effect
            )
        return effect

    def _check(self, n_classes: int) -> None:
        if n_classes > self.max_classes:
            raise InputError(
                f"ClassMoments: expected at most {self.max_classes} classes, got {n_classes}. "
                "Raise max_classes, or check that the label column holds classes."
            )

    def _within(
        self,
        centred: Float[Tensor, "row dim"],
        member: Int[Tensor, "row"],
        weight: Float[Tensor, "class"],
        residual: Float[Tensor, "class dim"],
    ) -> Tensor:
        if self.scatter == "pooled":
            within = gram(centred, centred.dtype if self.products == "fast" else None)
            return within.addmm_((residual * weight[:, None]).T, residual, alpha=-1.0)
        correction = _outer(residual, self.scatter) * _column(
            weight, _outer(residual, self.scatter)
        )
        if self.scatter == "full":
            dim = centred.shape[1]
            grams = [gram(centred[member == k]) for k in range(len(weight))]
            empty = torch.zeros(0, dim, dim, dtype=torch.float64, device=centred.device)
            return (torch.stack(grams) if grams else empty) - correction
        squares = centred.double().square()
        squares = squares.sum(1) if self.scatter == "trace" else squares
        return _sums(squares, member, len(weight)) - correction

    def _apart(self, x: Float[Tensor, "row dim"]) -> UnlabelledState:
        mean, centred, residual = centre(x)
        weight = torch.tensor(float(len(x)), dtype=torch.float64, device=mean.device)
        if self.scatter in ("pooled", "full"):
            return UnlabelledState(
                weight, mean, gram(centred) - weight * torch.outer(residual, residual)
            )
        squares = centred.double().square().sum(0) - weight * residual.square()
        return UnlabelledState(weight, mean, squares.sum() if self.scatter == "trace" else squares)


def _average(weight: Float[Tensor, "class"], mean: Float[Tensor, "class dim"]) -> Tensor:
    """Return the mean of all rows, exact for units with equal class means."""
    first = mean[:1].sum(0)
    return first + (weight / weight.sum()) @ (mean - first)


def _sums(values: Tensor, member: Int[Tensor, "row"], n_classes: int) -> Tensor:
    """Return each class's sum in float64.

    For a few classes, blocks of 64 rows are multiplied in their own type and added in float64:
    several times faster, and as exact as ``column_sum``.
    """
    if 0 < n_classes <= FEW and values.ndim == 2 and values.dtype == torch.float32:
        whole, own = len(values) // BLOCK * BLOCK, nn.functional.one_hot(member, n_classes)
        own = own.to(values)
        rows = values[:whole].reshape(-1, BLOCK, values.shape[1])
        blocks = own[:whole].reshape(-1, BLOCK, n_classes).mT @ rows
        return blocks.double().sum(0) + (own[whole:].T @ values[whole:]).double()
    values = values.double()
    out = torch.zeros(n_classes, *values.shape[1:], dtype=values.dtype, device=values.device)
    return out.index_add_(0, member, values)


def _spread(values: Tensor, own: Int[Tensor, "own"], labels: Int[Tensor, "class"]) -> Tensor:
    """Return per-class values in the order of ``labels``, 0 for missing classes."""
    out = torch.zeros(len(labels), *values.shape[1:], dtype=values.dtype, device=values.device)
    return out.index_copy_(0, torch.searchsorted(labels, own), values)


def _outer(z: Float[Tensor, "class dim"], scatter: Scatter) -> Tensor:
    if scatter == "full":
        return z[:, :, None] * z[:, None, :]
    return z.square().sum(1) if scatter == "trace" else z.square()


def _column(weight: Float[Tensor, "class"], like: Tensor) -> Tensor:
    return weight.reshape(-1, *[1] * (like.ndim - 1))


def _quadratic(
    z: Float[Tensor, "row dim"], form: Tensor, scatter: Scatter, one: bool = False
) -> Float[Tensor, "row"]:
    if scatter == "trace":
        return form * z.square().sum(1)
    if scatter == "diag":
        return (z.square() * form).sum(1)
    if scatter == "pooled" or one:
        return ((z @ form) * z).sum(1)
    return torch.einsum("rd,rde,re->r", z, form, z)


def _merge_rest(
    a: UnlabelledState | None, b: UnlabelledState | None, scatter: Scatter
) -> UnlabelledState | None:
    if a is None or b is None:
        return b if a is None else a
    weight, delta = a.weight + b.weight, b.mean - a.mean
    if scatter in ("pooled", "full"):
        shift = torch.outer(delta, delta)
    else:
        shift = delta.square().sum() if scatter == "trace" else delta.square()
    return UnlabelledState(
        weight,
        a.mean + delta * (b.weight / weight),
        a.scatter + b.scatter + a.weight * b.weight / weight * shift,
    )
