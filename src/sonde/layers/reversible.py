"""Reversible columns, whose inputs follow from their outputs, so that training stores one."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from sonde.core.autocast import is_autocast
from sonde.core.errors import InputError, StateError
from sonde.layers.layer import Layer

NEAR = 1e-3
LEAST = 0.5
"""Least factor of what a level keeps: the inverse divides by it in every column."""


@final
class Reversible(Layer):
    """Pass states of several levels through reversible columns.

    Level ``l`` of column ``c`` is ``F_l(x_(l-1)^c + x_(l+1)^(c-1)) + g_l x_l^(c-1)``: it reads the
    level below in this column and the level above in the previous column, and adds ``g_l`` times
    its own state in the previous column. Two levels are an additive coupling. With ``recompute``
    the backward pass finds each column's inputs from its outputs by ``inverse``, so that memory
    does not grow with the columns.

    Range        starts as the identity: ``F = 0`` and ``g = 1``, which stays above 0.5.
    Cost         ``2 width dim`` products for each level, column and place; in training once more,
                 and once more for the inverse.
    Assumes      float32 or more: the inverse of 20 columns of 4 levels is off by about 1e-5 there.
                 The backward pass compares a projection of each recomputed input with that of the
                 forward pass, and raises if they differ by more than 0.1 % (or 8 roundings).
    Differs      from the paper: all levels have one width and shape.

    Parameters
    ----------
    dim : int
        Width of the states of each level.
    level : int, default=2
        Levels, at least two.
    n_columns : int, default=2
        Number of columns.
    width : int, optional
        Hidden units of ``F``; twice ``dim`` by default.
    recompute : bool, default=True
        False stores all columns for the backward pass, as usual.
    block : nn.Module, optional
        A module from ``(row *axes dim)`` to the same shape, copied for each ``F``; without batch
        norm, whose running statistics would be moved twice.

    References
    ----------
    cai2023revcol
    """

    paper: ClassVar[str] = "cai2023revcol"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "level": 3, "n_columns": 3},
        {"dim": 4, "width": 3, "recompute": False},
    )
    layout: ClassVar[tuple[str, ...]] = ("row level *axes dim",)
    insertable = False

    def __init__(
        self,
        dim: int,
        level: int = 2,
        n_columns: int = 2,
        width: int | None = None,
        recompute: bool = True,
        block: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if level < 2 or n_columns < 1:
            raise InputError(
                f"Reversible: expected 2 levels or more and a column, got {level} and {n_columns}."
            )
        norms = [] if block is None else [m for m in block.modules() if _moves(m)]
        if norms:
            raise InputError(
                "Reversible: expected a block without batch norm, got "
                f"{type(norms[0]).__name__}. The backward pass runs the block again, which "
                "would update its statistics twice: use layer norm or group norm."
            )
        self.dim, self.level, self.recompute = dim, level, recompute
        wide = width or 2 * dim
        self.columns = nn.ModuleList(_Column(dim, level, wide, block) for _ in range(n_columns))

    def forward(
        self, x: Float[Tensor, "row level *axes dim"]
    ) -> Float[Tensor, "row level *axes dim"]:
        """Return the levels after the last column.

        Parameters
        ----------
        x : Float[Tensor, "row level *axes dim"]
            Levels before the first column, e.g. the input below and zeros above.
        """
        if self.recompute and torch.is_grad_enabled():
            names, weights = _weights(self)
            return cast(Tensor, _Columns.apply(self, names, x, *weights))
        for column in self.columns:
            x = column(x)
        return x

    @torch.no_grad()
    def inverse(
        self, y: Float[Tensor, "row level *axes dim"]
    ) -> Float[Tensor, "row level *axes dim"]:
        """Return the levels before the first column; use eval mode.

        Parameters
        ----------
        y : Float[Tensor, "row level *axes dim"]
        """
        for column in reversed(self.columns):
            y = column(y, back=True)
        return y


class _Column(nn.Module):
    """A column; ``back`` recomputes its input, ``draws`` holds random states."""

    def __init__(self, dim: int, level: int, width: int, block: nn.Module | None) -> None:
        super().__init__()
        blocks = (_perceptron(dim, width) if block is None else copy.deepcopy(block)
                for _ in range(level))  # fmt: skip
        self.parts = nn.ModuleList(blocks)
        self.keep = nn.Parameter(torch.zeros(level, dim))

    def forward(
        self, x: Tensor, back: bool = False, draws: list[Any] | None = None, again: bool = False
    ) -> Tensor:
        levels, n = list(x.unbind(1)), x.shape[1]
        factor = LEAST + (1 - LEAST) * self.keep.exp()
        for i in reversed(range(n)) if back else range(n):
            near = [levels[j] for j in (i - 1, i + 1) if 0 <= j < n]
            coupled = self._said(i, torch.stack(near).sum(0), draws, again)
            levels[i] = (
                (levels[i] - coupled) / factor[i] if back else coupled + factor[i] * levels[i]
            )
        return torch.stack(levels, 1)

    def _said(self, i: int, x: Tensor, draws: list[Any] | None, again: bool) -> Tensor:
        """Run a block; a second run repeats the first run's random numbers."""
        if draws is None or not self.training:
            return self.parts[i](x)
        where = [x.device] if x.is_cuda else []
        if not again:
            draws.append([torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in where)])
            return self.parts[i](x)
        with torch.random.fork_rng(where):
            torch.set_rng_state(draws[i][0])
            for device, state in zip(where, draws[i][1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return self.parts[i](x)


class _Columns(torch.autograd.Function):
    """All columns; only the outputs of the last column are stored for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, layer: Reversible, names: Sequence[Sequence[str]], x: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.layer, ctx.names = layer, names
        ctx.draws = [[] for _ in layer.columns]
        kind = x.device.type  # the backward pass computes in the types of the forward pass
        ctx.marks = [_mark(x)]
        ctx.types = torch.autocast(kind, torch.get_autocast_dtype(kind), is_autocast(x.device))
        for column, draws in zip(layer.columns, ctx.draws, strict=True):
            x = column(x, draws=draws)
            ctx.marks.append(_mark(x))
        ctx.save_for_backward(x, *weights)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        with ctx.types:
            return _Columns._recomputed(ctx, *grads)

    @staticmethod
    def _recomputed(ctx: Any, *grads: Any) -> Any:
        y, *weights = ctx.saved_tensors
        grad, gradients, stop = grads[0], [], len(weights)
        errors: list[Tensor] = []
        parts = (ctx.layer.columns, ctx.names, ctx.draws, ctx.marks[:-1])
        for column, names, draws, mark in zip(*map(reversed, parts), strict=True):
            own = dict(zip(names, weights[stop - len(names) : stop], strict=True))
            stop -= len(names)
            how = {"draws": draws, "again": True}
            with torch.no_grad():
                x = functional_call(column, own, (y,), {**how, "back": True})
                errors.append(_error(_mark(x), mark, ctx.marks))
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                leaves = {n: w.detach().requires_grad_(w.requires_grad) for n, w in own.items()}
                out = functional_call(column, leaves, (leaf,), how)
            asked = [leaf, *(w for w in leaves.values() if w.requires_grad)]
            grad, *given = torch.autograd.grad(out, asked, grad, allow_unused=True)
            rest = iter(given)
            gradients[:0] = [next(rest) if w.requires_grad else None for w in leaves.values()]
            y = x
        _check(errors, y.dtype)
        return (None, None, grad, *gradients)


def _mark(x: Tensor) -> Tensor:
    """Return checksums of the units: sums over rows and positions with fixed random signs."""
    generator = torch.Generator(x.device).manual_seed(0)
    places = (len(x), 1, *x.shape[2:-1], 1)
    signs = torch.randint(0, 2, places, generator=generator, device=x.device) * 2.0 - 1.0
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    return (x * signs.to(x)).sum([0, *range(2, x.ndim - 1)])


def _error(found: Tensor, wanted: Tensor, marks: Sequence[Tensor]) -> Tensor:
    """Return the largest error of a unit's checksum, relative to the units' root mean square."""
    size = wanted.square().mean().sqrt()
    largest = torch.stack([mark.square().mean() for mark in marks]).max().sqrt()
    size = torch.where(size > 0, size, largest).clamp(min=torch.finfo(wanted.dtype).tiny)
    gap = (found - wanted).abs().amax() / size
    return torch.where(wanted.isfinite().all(), gap.nan_to_num(torch.inf), 0.0)


def _check(errors: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Raise if a recomputed input differs from the forward pass."""
    worst, limit = float(torch.stack(list(errors)).max()), max(NEAR, 8 * torch.finfo(dtype).eps)
    if worst > limit:
        raise StateError(
            "Reversible: expected the inverse to reproduce the inputs of the columns, got an "
            f"error of {worst:.2g} of their size in {str(dtype).removeprefix('torch.')} (limit "
            f"{limit:.1g}), so the gradients would be wrong. Pass recompute=False, or use "
            "float64, fewer columns or a smaller learning rate."
        )


def _weights(layer: Reversible) -> tuple[list[list[str]], list[Tensor]]:
    """Return the names of each column's parameters, and all of them in that order."""
    named = [list(column.named_parameters()) for column in layer.columns]
    return [[n for n, _ in one] for one in named], [w for one in named for _, w in one]


def _perceptron(dim: int, width: int) -> nn.Module:
    last = nn.Linear(width, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), last)


def _moves(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
