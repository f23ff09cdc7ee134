"""Rules for per-row gradients of the operations in neural networks.

A rule is made for the gradient that flows into an operation, whose first axis holds the rows one
after another, each ``k`` times (windows, tokens, frames). It gives the gradients of some rows, and,
where that is cheaper than making them, the sum of their squares.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.tap.gradients.graph import Use


class GradientRule(ABC):
    """Per-row gradients of one use of a parameter."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Float[Tensor, "row ..."]:
        """Return the gradients of some rows."""

    def squares(self) -> Float[Tensor, "..."] | None:
        """Return the sum over rows of squared gradients, or None if it needs gradients by row."""
        return None


@final
@dataclass(frozen=True, eq=False)
class Outer(GradientRule):
    """``x @ weight``: the sum over positions of the products of input and gradient."""

    x: Float[Tensor, "row k n_in"]
    gradient: Float[Tensor, "row k n_out"]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the products, summed over the positions of each row."""
        return torch.bmm(self.x[start:stop].mT, self.gradient[start:stop])

    def squares(self) -> Tensor | None:
        """Return the product of the squares, or None if rows have several positions."""
        if self.x.shape[1] != 1:
            return None
        return self.x[:, 0].square().T @ self.gradient[:, 0].square()


@final
@dataclass(frozen=True, eq=False)
class Summed(GradientRule):
    """An added or multiplied parameter: the gradient, summed over broadcast axes."""

    values: Float[Tensor, "row k ..."]
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the sums over the parameter's missing axes and its axes of size 1."""
        values = self.values[start:stop]
        n_axes = values.ndim - 1
        aligned = (1,) * (n_axes - len(self.shape)) + self.shape
        axes = [1 + a for a in range(n_axes) if aligned[a] == 1 != values.shape[1 + a]]
        summed = values.sum(axes, keepdim=True) if axes else values
        return summed.reshape(len(values), *self.shape)


@final
@dataclass(frozen=True, eq=False)
class Lookup(GradientRule):
    """Table lookup: the gradients of each entry, summed."""

    index: Int[Tensor, "row k"]
    gradient: Float[Tensor, "row k dim"]
    n_entries: int

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the gradient of the whole table for each row."""
        index, gradient = self.index[start:stop], self.gradient[start:stop]
        summed = gradient.new_zeros(len(index), self.n_entries, gradient.shape[2])
        return summed.scatter_add_(1, index[..., None].expand_as(gradient), gradient)

    def squares(self) -> Tensor:
        """Return the table of squares, from the entries that each row looks up."""
        row = torch.arange(len(self.index), device=self.index.device)[:, None]
        pair, place = (row * self.n_entries + self.index).unique(return_inverse=True)
        flat = self.gradient.flatten(0, 1)
        sums = flat.new_zeros(len(pair), flat.shape[1]).index_add_(0, place.flatten(), flat)
        table = flat.new_zeros(self.n_entries, flat.shape[1])
        return table.index_add_(0, pair % self.n_entries, sums.square())


@final
@dataclass(frozen=True, eq=False)
class Kernel(GradientRule):
    """A convolution: products of patches and gradients, or one backward pass for each row."""

    x: Float[Tensor, "row k n_in *space"]
    gradient: Float[Tensor, "row k n_out *space2"]
    node: Any
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the gradients of the kernel."""
        x, gradient = self.x[start:stop], self.gradient[start:stop]
        if self.node._saved_transposed or len(self.shape) > 4:
            return torch.stack([self._one(a, b) for a, b in zip(x, gradient, strict=True)])
        k, groups = x.shape[1], self.node._saved_groups
        patches = self._patches(x.flatten(0, 1))
        grouped = patches.reshape(len(patches) * groups, -1, patches.shape[2])
        wanted = gradient.flatten(0, 1).flatten(2)
        wanted = wanted.reshape(len(grouped), -1, wanted.shape[2])
        summed = torch.bmm(wanted, grouped.mT)
        return summed.reshape(-1, k, *self.shape).sum(1)

    def _patches(self, x: Tensor) -> Tensor:
        """Return image patches, (example, channel x kernel, position)."""
        options = [self.node._saved_dilation, self.node._saved_padding, self.node._saved_stride]
        kernel = self.shape[2:]
        if len(kernel) == 1:
            x, kernel = x[:, :, None], (1, *kernel)
            options = [(one, *given) for one, given in zip((1, 0, 1), options, strict=True)]
        return torch.nn.functional.unfold(x, kernel, *map(tuple, options))

    def _one(self, x: Tensor, gradient: Tensor) -> Tensor:
        node = self.node
        return torch.ops.aten.convolution_backward(
            gradient,
            x,
            node._saved_weight.to(x),
            None,
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            node._saved_transposed,
            node._saved_output_padding,
            node._saved_groups,
            [False, True, False],
        )[1]


def rule_for(use: Use, gradient: Float[Tensor, "row_k ..."], n: int) -> GradientRule | None:
    """Return the rule of an operation for ``n`` rows, or None if no rule exists."""
    make = RULES.get(use.node.name())
    return None if make is None else make(use, _wide(gradient), n)


def has_rule(use: Use) -> bool:
    """Return whether an operation may have a rule; ``rule_for`` may still return None."""
    return use.node.name() in RULES


def _wide(x: Tensor) -> Tensor:
    """Return half-precision types as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _by_row(x: Tensor, n: int) -> Tensor:
    return x.reshape(n, -1, *x.shape[1:])


def _product(use: Use, gradient: Tensor, n: int) -> GradientRule | None:
    """``addmm(bias, x, weight)`` and ``mm(x, weight)``."""
    node, has_bias = use.node, use.node.name().startswith("Addmm")
    if has_bias and not (node._saved_alpha == 1 and node._saved_beta == 1):
        return None
    if has_bias and use.index == 0:
        return Summed(_by_row(gradient, n), use.shape)
    if use.index != 1 + has_bias:
        return None
    x = _wide(node._saved_mat1 if has_bias else node._saved_self)
    return Outer(_by_row(x, n), _by_row(gradient, n))


def _added(use: Use, gradient: Tensor, n: int) -> GradientRule:
    factor = use.node._saved_alpha if use.index == 1 else 1
    return Summed(_by_row(gradient * factor, n), use.shape)


def _subtracted(use: Use, gradient: Tensor, n: int) -> GradientRule:
    factor = -use.node._saved_alpha if use.index == 1 else 1
    return Summed(_by_row(gradient * factor, n), use.shape)


def _multiplied(use: Use, gradient: Tensor, n: int) -> GradientRule | None:
    other = use.node._saved_other if use.index == 0 else use.node._saved_self
    return None if other is None else Summed(_by_row(gradient * other, n), use.shape)


def _expanded(use: Use, gradient: Tensor, n: int) -> GradientRule:
    return Summed(_by_row(gradient, n), use.shape)


def _looked_up(use: Use, gradient: Tensor, n: int) -> GradientRule | None:
    node = use.node
    if node._saved_scale_grad_by_freq or node._saved_sparse:
        return None
    index = node._saved_indices.reshape(n, -1)
    gradient = gradient.reshape(n, index.shape[1], -1)
    padding = node._saved_padding_idx
    if 0 <= padding < use.shape[0]:
        gradient = gradient.masked_fill((index == padding)[..., None], 0.0)
    return Lookup(index, gradient, use.shape[0])


def _convolved(use: Use, gradient: Tensor, n: int) -> GradientRule | None:
    if use.index == 2:
        return Summed(_by_row(gradient.flatten(2).sum(2), n), use.shape)
    x = _wide(use.node._saved_input)
    return Kernel(_by_row(x, n), _by_row(gradient, n), use.node, use.shape)


def _layer_normed(use: Use, gradient: Tensor, n: int) -> GradientRule:
    node = use.node
    if use.index == 1:
        normed = (_wide(node._saved_input) - node._saved_result1) * node._saved_result2
        gradient = gradient * normed
    return Summed(_by_row(gradient, n), use.shape)


def _batch_normed(use: Use, gradient: Tensor, n: int) -> GradientRule | None:
    node = use.node
    if node._saved_training:
        return None
    if use.index == 1:
        form = (1, -1) + (1,) * (gradient.ndim - 2)
        spread = (node._saved_running_var + node._saved_eps).sqrt().reshape(form)
        centre = node._saved_running_mean.reshape(form)
        gradient = gradient * (_wide(node._saved_input) - centre) / spread
    sums = gradient.flatten(2).sum(2) if gradient.ndim > 2 else gradient
    return Summed(_by_row(sums, n), use.shape)


def _group_normed(use: Use, gradient: Tensor, n: int) -> GradientRule:
    node = use.node
    if use.index == 1:
        x = _wide(node._saved_input)
        parts = x.reshape(len(x), node._saved_group, -1)
        normed = (parts - node._saved_result1[..., None]) * node._saved_result2[..., None]
        gradient = gradient * normed.reshape(x.shape)
    return Summed(_by_row(gradient.flatten(2).sum(2), n), use.shape)


RULES: dict[str, Callable[[Use, Tensor, int], GradientRule | None]] = {
    "AddBackward0": _added,
    "AddmmBackward0": _product,
    "ConvolutionBackward0": _convolved,
    "EmbeddingBackward0": _looked_up,
    "ExpandBackward0": _expanded,
    "MmBackward0": _product,
    "MulBackward0": _multiplied,
    "NativeBatchNormBackward0": _batch_normed,
    "NativeGroupNormBackward0": _group_normed,
    "NativeLayerNormBackward0": _layer_normed,
    "SubBackward0": _subtracted,
}
