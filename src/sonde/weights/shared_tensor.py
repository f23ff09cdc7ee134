"""Stacks of matrices in which several places share one matrix, itself stored in a smaller form.

The module keeps its class and its forward, as with ``QuantTensor``: one expert is unpacked when it
is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.weights.change import PREFIX, Change, narrowed
from sonde.weights.quant_tensor import HeldTensor

PARTS = ("slot", "left", "right", "columns", "values")


class SharedTensor(HeldTensor):
    """Distinct matrices of a stack, each a thin product plus some whole columns.

    Matrix ``i`` is ``left_s right_s`` with ``values_s`` added at ``columns_s``, ``s = slot_i``.

    Parameters
    ----------
    shape : sequence of int
        Of the stack: places, rows, columns.
    slots : int
        Distinct matrices.
    rank, columns : int
        Of each distinct matrix.
    """

    slot: Tensor
    left: Tensor
    right: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, shape: Sequence[int], slots: int, rank: int, columns: int) -> None:
        super().__init__(shape)
        n, n_out, n_in = self.shape
        self.register_buffer("slot", torch.zeros(n, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(slots, columns, dtype=torch.int32))
        for name, size in (
            ("left", (n_out, rank)),
            ("right", (rank, n_in)),
            ("values", (n_out, columns)),
        ):
            self.register_buffer(name, torch.zeros(slots, *size))

    def extra_repr(self) -> str:
        """Return shape, distinct matrices, rank and columns."""
        shape, (slots, columns) = " x ".join(map(str, self.shape)), self.columns.shape
        return f"{shape}, slots={slots}, rank={self.left.shape[2]}, columns={columns}"

    @property
    def codes(self) -> Tensor:
        """The distinct matrix of each place, by which weights are counted."""
        return self.slot

    def rows(self, part: Any) -> Float[Tensor, "..."]:
        """Return the matrices that a slice or a tensor selects, in float32."""
        held = (
            x[self.slot[part].long()] for x in (self.left, self.right, self.columns, self.values)
        )
        return joined(*held)


@final
@dataclass(frozen=True, eq=False)
class SharedStack(Change):
    """Store each distinct matrix of a stack once, as a thin product plus whole columns.

    Parameters
    ----------
    leaf : str
        Name of the parameter in its module.
    slot : Int[Tensor, "place"]
        The distinct matrix of each place.
    left : Float[Tensor, "slot out rank"]
        Left factors of the thin products.
    right : Float[Tensor, "slot rank in"]
        Right factors of the thin products.
    columns : Int[Tensor, "slot kept"]
        Columns that are stored whole.
    values : Float[Tensor, "slot out kept"]
        Added at these columns.
    """

    leaf: str
    slot: Int[Tensor, "place"]
    left: Float[Tensor, "slot out rank"]
    right: Float[Tensor, "slot rank in"]
    columns: Int[Tensor, "slot kept"]
    values: Float[Tensor, "slot out kept"]

    def factors(self) -> dict[str, Tensor]:
        """Return no tensors, because the new model itself holds them."""
        return {}

    def form(self, module: nn.Module, name: str) -> dict[str, Any]:
        """Return the shape and the number of distinct matrices, their rank and their columns."""
        slots, n_out, rank = self.left.shape
        options = {"slots": slots, "rank": rank, "columns": self.columns.shape[1]}
        shape = [len(self.slot), n_out, self.right.shape[2]]
        return {"tensors": {self.leaf: {**options, "shape": shape}}}

    def replaced(self) -> dict[str, Tensor]:
        """Return all parts, numbers in the narrowest dtype that holds them exactly."""
        parts = {name: getattr(self, name) for name in PARTS}
        short = {n: narrowed(x) if x.is_floating_point() else x.int() for n, x in parts.items()}
        return {f"{PREFIX}{self.leaf}.{n}": x.contiguous() for n, x in short.items()}

    def words(self) -> str:
        """Return the number of distinct matrices, their rank and their columns."""
        slots, _, rank = self.left.shape
        text = f"{slots} of {len(self.slot)} matrices stored"
        return f"{text}, rank {rank} and {self.columns.shape[1]} columns" if rank else text

    def _of(self, old: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        parts = (self.left, self.right, self.columns, self.values)
        return joined(*(x[self.slot.long()].to(old.device) for x in parts)).to(old)


def joined(
    left: Float[Tensor, "n out rank"],
    right: Float[Tensor, "n rank in"],
    columns: Int[Tensor, "n kept"],
    values: Float[Tensor, "n out kept"],
) -> Float[Tensor, "n out in"]:
    """Return products of thin matrices with columns added, at least in float32."""
    dtype = torch.promote_types(left.dtype, torch.float32)
    place = columns.long()[:, None].expand(values.shape)
    return (left.to(dtype) @ right.to(dtype)).scatter_add(2, place, values.to(dtype))
