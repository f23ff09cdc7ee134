"""A linear layer as a matrix, and its tensors after a map of its input or output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.edit import AffineMap
from sonde.core.errors import ShapeError, StateError
from sonde.weights._kinds import Kind, kind_of
from sonde.weights.change import Change, Exchange, LowRank
from sonde.weights.live import with_tensors


@dataclass(frozen=True)
class Layer:
    """A layer that multiplies by a matrix and may add a bias.

    Parameters
    ----------
    name : str
        Of the module, as in ``state_dict()``.
    module : nn.Module
    kind : Kind
    """

    name: str
    module: Any
    kind: Kind

    @property
    def weight(self) -> str:
        """Name of the weight."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def bias(self) -> str:
        """Name of the bias, even if the layer has no bias."""
        return self.weight.removesuffix("weight") + "bias"

    def after(self, affine: AffineMap) -> dict[str, Change]:
        """Return the changes that apply a map to the layer's output.

        Raises
        ------
        StateError
            If the map mixes channels of several groups of a kernel.
        """
        matrix = self._matrix()
        if affine.left is not None and self.kind == "maps" and self.module.groups != 1:
            raise self._grouped("output")
        if self.kind == "rows":
            return {self.weight: mapped_rows(self.name, matrix, affine)}
        scale, left, right, shift = _parts(self.name, affine, matrix, len(matrix))
        changes: dict[str, Change] = {}
        if scale != 1.0:
            changes[self.weight] = self._whole(scale * matrix + left @ (right.T @ matrix))
        elif left.numel():
            changes[self.weight] = self._thin(left, right.T @ matrix)
        bias = self._bias()
        if bias is not None:
            bias = scale * bias + left @ (right.T @ bias) + (0.0 if shift is None else shift)
            changes[self.bias] = Exchange(bias)
        elif shift is not None:
            changes[self.bias] = Exchange(shift)
        return changes

    def before(self, affine: AffineMap) -> dict[str, Change]:
        """Return the changes that apply a map to the layer's input.

        Raises
        ------
        StateError
            If the layer is an embedding, a grouped kernel (unless the map only scales), or a padded
            kernel and the map shifts.
        """
        if self.kind == "rows":
            raise StateError(
                f"fold_edit: the input of {self.name} is token ids, which cannot be edited. "
                "Name its output."
            )
        matrix = self._matrix()
        if self.kind == "maps":
            matrix = self._kernel(affine)
        scale, left, right, shift = _parts(self.name, affine, matrix, matrix.shape[1])
        changes: dict[str, Change] = {}
        reads = torch.einsum("oi...,ir->or...", matrix, left)
        if scale != 1.0 or (left.numel() and matrix.ndim > 2):
            part = torch.einsum("or...,ir->oi...", reads, right)
            changes[self.weight] = self._whole(scale * matrix + part)
        elif left.numel():
            changes[self.weight] = self._thin(reads, right.T)
        if shift is not None:
            added = torch.einsum("oi...,i->o...", matrix, shift).reshape(len(matrix), -1).sum(1)
            bias = self._bias()
            changes[self.bias] = Exchange(added if bias is None else bias + added)
        return changes

    def difference(self, affine: AffineMap, port: str, changes: Mapping[str, Change]) -> float:
        """Return the largest error of the changed layer, as a fraction of the largest output.

        The changed layer is compared with the mapped one in float64, on rows of noise or on some
        tokens.
        """
        prefix = self.weight.removesuffix("weight")
        old = dict(self.module.named_parameters())
        new = {n.removeprefix(prefix): c for n, c in changes.items()}
        changed = {n: change.of(old.get(n)) for n, change in new.items()}
        axis = 1 if self.kind == "maps" else -1

        def mapped(x: Tensor, of: str) -> Tensor:
            return affine(x.movedim(axis, -1)).movedim(-1, axis) if port == of else x

        x = self._noise()
        with torch.no_grad():
            plain, folded = (with_tensors(self.module, given).double() for given in ({}, changed))
            before, wanted = plain(x), mapped(plain(mapped(x, "in")), "out")
            largest = torch.maximum(before.abs().max(), wanted.abs().max())
            return float((wanted - folded(x)).abs().max() / largest.clamp(min=1e-300))

    def plus(self, left: Float[Tensor, "out rank"], right: Float[Tensor, "rank in"]) -> Change:
        """Return the weight change that adds ``left right`` to the matrix."""
        return self._thin(left, right)

    def _matrix(self) -> Tensor:
        weight = self.module.weight.detach().double()
        if self.kind == "transposed":
            return weight.T
        return weight.flatten(1)

    def _bias(self) -> Tensor | None:
        bias = self.module._parameters.get("bias")
        return None if bias is None else bias.detach().double()

    def _kernel(self, affine: AffineMap) -> Tensor:
        if self.module.groups != 1 and (affine.left is not None or affine.shift is not None):
            raise self._grouped("input")
        if affine.shift is not None and self.module.padding not in (
            "valid",
            (0,) * 3,
            (0, 0),
            (0,),
        ):
            raise StateError(
                f"fold_edit: {self.name} pads its input with zeros, to which the bias of the "
                "edit would not be added. Name the output of the layer before it."
            )
        return self.module.weight.detach().double()

    def _grouped(self, end: str) -> StateError:
        return StateError(
            f"fold_edit: each group of {self.name} reads its own channels, so an edit that "
            f"mixes all channels of its {end} cannot be folded into its weights. Open the "
            "edit with sonde.editing, or name another layer."
        )

    def _noise(self) -> Tensor:
        """Return a small input of the layer: noise in float64, or tokens for an embedding."""
        weight, generator = self.module.weight, torch.Generator().manual_seed(0)
        if self.kind == "rows":
            return torch.arange(min(len(weight), 8), device=weight.device)
        width = self.module.in_channels if self.kind == "maps" else self._matrix().shape[1]
        shape: tuple[int, ...] = (8, width)
        if self.kind == "maps":
            reach = zip(self.module.kernel_size, self.module.dilation, strict=True)
            shape = (2, width, *(1 + dilation * (size - 1) for size, dilation in reach))
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return noise.to(weight.device)

    def _whole(self, matrix: Tensor) -> Change:
        matrix = matrix.T if self.kind == "transposed" else matrix
        return Exchange(matrix.reshape(self.module.weight.shape))

    def _thin(self, left: Tensor, right: Tensor) -> Change:
        return LowRank(right.T, left.T) if self.kind == "transposed" else LowRank(left, right)


def layer_of(name: str, module: nn.Module) -> Layer | None:
    """Return a module as a layer, or None if it does more than multiply and add a bias."""
    kind = kind_of(module)
    if kind is None or "weight" not in module._parameters:
        return None
    weight = module._parameters["weight"]
    return Layer(name, module, kind) if weight is not None and weight.is_floating_point() else None


def mapped_rows(name: str, rows: Float[Tensor, "... dim"], affine: AffineMap) -> Change:
    """Return the change that maps each row of a tensor."""
    rows = rows.double()
    scale, left, right, shift = _parts(name, affine, rows, rows.shape[-1])
    if scale != 1.0:
        return Exchange(scale * rows + (rows @ right) @ left.T + (0.0 if shift is None else shift))
    thin = rows.reshape(-1, rows.shape[-1]) @ right
    if shift is not None:
        thin = torch.cat([thin, thin.new_ones(len(thin), 1)], 1)
        left = torch.cat([left, shift.unsqueeze(1)], 1)
    return LowRank(thin, left.T)


def _parts(
    name: str, affine: AffineMap, like: Tensor, width: int
) -> tuple[float, Tensor, Tensor, Tensor | None]:
    """Return scale, factors and shift in the dtype of ``like``, with factors of rank 0 if missing.

    Raises
    ------
    ShapeError
        If the map is of another width.
    """
    for x in (affine.shift, affine.left, affine.right):
        if x is not None and x.shape[0] != width:
            raise ShapeError(
                f"fold_edit: expected an edit of {width} features at {name}, got an edit of "
                f"{x.shape[0]} features. Fit it at this site."
            )
    none = like.new_zeros(width, 0)
    left, right = (none if x is None else x.to(like) for x in (affine.left, affine.right))
    return affine.scale, left, right, None if affine.shift is None else affine.shift.to(like)


def names_of(module: nn.Module) -> Mapping[int, str]:
    """Return the name in ``state_dict()`` of each module, by its id."""
    names: dict[int, str] = {}
    for name, part in module.named_modules():
        names.setdefault(id(part), name)
    return names
