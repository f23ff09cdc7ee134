"""Branches beside the layers of a shared model: what each expert adds, weighted for each row."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from sonde.core.errors import ShapeError, StateError
from sonde.tap.hooks.held import Held
from sonde.weights._layer import layer_of

LINEAR = 1e-3
"""Largest departure from linearity in the parameters, in parts of the largest change."""


class Route:
    """Weights of the experts for each example, or None while the branches are closed."""

    def __init__(self) -> None:
        self._held: Held[Float[Tensor, "example expert"]] = Held("TwinModel.routed")

    @property
    def weights(self) -> Float[Tensor, "example expert"] | None:
        """The weights that hold for the running thread or task."""
        return self._held.get()

    def opened(
        self, weights: Float[Tensor, "example expert"] | None
    ) -> AbstractContextManager[None]:
        """Open the branches with weights, or close them, inside a ``with`` block."""
        return self._held.held(weights)

    def for_rows(self, n: int, like: Tensor) -> Float[Tensor, "row expert"]:
        """Return the weights of rows, in the type of a tensor; an example may have several rows.

        Raises
        ------
        ShapeError
            If the number of rows is no multiple of the number of examples.
        """
        weights = self.weights
        assert weights is not None  # closed branches ask for nothing
        if n % len(weights):
            raise ShapeError(
                f"TwinModel: expected rows of {len(weights)} examples, got {n} rows. This "
                "model mixes its examples; route them one by one."
            )
        return weights.to(like).repeat_interleave(n // len(weights), 0)


class Branch(nn.Module, ABC):
    """A forward hook that adds what the experts' parameters change."""

    def __init__(self, name: str, route: Route) -> None:
        super().__init__()
        self.name, self.route = name, route

    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output with the branches added, None while they are closed."""
        like = output if isinstance(output, Tensor) else None
        weights = self.route.weights
        if weights is None:
            return None
        if like is None or not args:
            raise StateError(
                f"TwinModel: {self.name} ({type(module).__name__}) does not take and return one "
                "tensor, so no branch can be added."
            )
        x = args[0]
        if len(x) == 1:  # one for all examples, as positions are
            x = x.expand(len(weights), *x.shape[1:])
        return output + self.added(module, x, self.route.for_rows(len(x), like))

    @abstractmethod
    def added(self, module: Any, x: Tensor, weights: Tensor) -> Tensor:
        """Return what the branches add for an input."""


class _Thin(Branch):
    """Branch of a matrix: ``sum_e w_e (x right_e) left_e^T``, and the biases."""

    def __init__(self, name: str, route: Route, kind: str, left: Tensor, right: Tensor,
                 bias: Tensor | None) -> None:  # fmt: skip
        super().__init__(name, route)
        self.kind = kind
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.register_buffer("bias", bias)

    def added(self, module: Any, x: Tensor, weights: Tensor) -> Tensor:
        left: Any = self.left
        right: Any = self.right
        bias: Any = self.bias
        if self.kind == "rows":
            return torch.einsum("eb...r,edr,be->b...d", left[:, x], right, weights)
        if self.kind == "maps":
            total = None
            for i in range(len(left)):
                kernel = right[i].T.reshape(-1, *module.weight.shape[1:])
                thin = module._conv_forward(x, kernel, None)
                one = torch.einsum("br...,or,b->bo...", thin, left[i], weights[:, i])
                total = one if total is None else total + one
            assert total is not None  # there is at least one expert
        else:
            thin = torch.einsum("b...i,eir,be->be...r", x, right, weights)
            total = torch.einsum("be...r,eor->b...o", thin, left)
        if bias is None:
            return total
        mixed = weights @ bias
        at = 1 if self.kind == "maps" else total.ndim - 1
        return total + mixed.reshape([len(mixed) if i == 0 else -1 if i == at else 1
                                      for i in range(total.ndim)])  # fmt: skip


class _Whole(Branch):
    """Branch of any other module, such as a norm: its output with each expert's parameters."""

    def __init__(
        self,
        name: str,
        route: Route,
        parts: Mapping[str, Tensor],
        moved: Mapping[str, Tensor],
    ) -> None:
        super().__init__(name, route)
        self.names, self.moved, self.checked = list(parts), list(moved), False
        for part, x in {**parts, **moved}.items():
            self.register_buffer(f"of_{part}", x)

    def added(self, module: Any, x: Tensor, weights: Tensor) -> Tensor:
        with self.route.opened(None):
            plain = module(x)
            total = torch.zeros_like(plain)
            for i in range(weights.shape[1]):
                change = self._given(module, x, i, 1.0) - plain
                if not self.checked:
                    start = self._given(module, x, i, 0.0) - plain
                    half = self._given(module, x, i, 0.5) - plain
                    self._check_linear(module, change - start, half - start)
                weight = weights[:, i]
                total = total + weight.reshape(-1, *[1] * (plain.ndim - 1)) * change
            self.checked = True
            return total

    def _given(self, module: nn.Module, x: Tensor, expert: int, share: float) -> Tensor:
        parameters = {
            name: module._parameters[name] + share * getattr(self, f"of_{name}")[expert]
            for name in self.names
        }
        parameters |= {name: getattr(self, f"of_{name}")[expert].clone() for name in self.moved}
        return functional_call(module, parameters, (x,))

    def _check_linear(self, module: nn.Module, change: Tensor, half: Tensor) -> None:
        apart = (change - 2 * half).abs().max()
        if apart > LINEAR * change.abs().max() + 1e-6:
            raise StateError(
                f"TwinModel: the output of {self.name} ({type(module).__name__}) is not linear in "
                "its parameters, so experts cannot be mixed there."
            )


def branch_of(
    name: str,
    module: nn.Module,
    apart: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
    rank_of: Callable[[int, int], int],
    route: Route,
) -> Branch:
    """Return the branch of a module, from the differences of each expert's parameters.

    Parameters
    ----------
    name : str
    module : nn.Module
    apart : mapping of str to Float[Tensor, "expert ..."]
    moved : mapping of str to Float[Tensor, "expert ..."]
        Buffers of each expert, if an expert's differs from the shared model's.
    rank_of : callable
        Takes the numbers of rows and columns of a matrix; returns the rank to keep.
    route : Route
    """
    layer = layer_of(name, module)
    if layer is None or moved or getattr(module, "groups", 1) != 1:
        return _Whole(name, route, apart, moved)
    matrices = apart["weight"].flatten(2)
    if layer.kind == "transposed":
        matrices = matrices.mT
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    rank = rank_of(*matrices.shape[1:])
    left = (u * s.unsqueeze(1))[:, :, :rank].to(matrices)
    right = vh[:, :rank].mT.to(matrices)
    return _Thin(name, route, layer.kind, left, right, apart.get("bias"))
