"""Tensors of any module in a smaller form: a quantised embedding, a stack of experts.

The module keeps its class and its forward. Its parameter becomes a property that unpacks what is
read: the rows of the tokens of a batch, one expert of a stack.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.weights.change import PREFIX
from sonde.weights.packed_tensor import PackedTensor
from sonde.weights.packing import packed_length, unpack
from sonde.weights.quant_linear import BLOCK, Grid


class HeldTensor(nn.Module, ABC):
    """A tensor in a smaller form, which is unpacked on use; subclasses define the form.

    Parameters
    ----------
    shape : sequence of int
    """

    like: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        # follows ``.to(dtype)``, so that the tensor has the type that the model computes in
        self.register_buffer("like", torch.empty(0), persistent=False)

    @property
    def tensor(self) -> PackedTensor:
        """The tensor, which is unpacked on use."""
        return PackedTensor(self, self.shape, self.like.dtype, self.like.device)

    @abstractmethod
    def rows(self, part: Any) -> Float[Tensor, "..."]:
        """Return the selection of a slice or a tensor from the first axis, in float32."""

    def product(self, x: Tensor) -> Tensor:
        """Return ``x W^T`` in the dtype of ``x``, without a gradient, block of outputs by block."""
        wide, step = x.float(), max(1, BLOCK // max(self.shape[-1], 1))
        parts = [slice(i, i + step) for i in range(0, self.shape[0], step)]
        return torch.cat([functional.linear(wide, self.rows(p)) for p in parts], -1).to(x.dtype)


class QuantTensor(HeldTensor):
    """Codes of a tensor, with bfloat16 scales and offsets for groups along its last axis.

    An entry is ``(code - 2^(bits - 1)) * scale + offset``. Scales are held as the bits of bfloat16
    numbers.

    Parameters
    ----------
    shape : sequence of int
    bits, group : int
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, shape: Sequence[int], bits: int, group: int) -> None:
        super().__init__(shape)
        self.grid = Grid(bits, group)
        *lead, n = self.shape
        self.register_buffer("codes", torch.zeros(*lead, packed_length(n, bits), dtype=torch.uint8))
        for name in ("scale", "offset"):
            bits_of = torch.zeros(*lead, self.grid.n_groups(n), dtype=torch.int16)
            self.register_buffer(name, bits_of)

    def extra_repr(self) -> str:
        """Return shape, bits and group."""
        shape = " x ".join(map(str, self.shape))
        return f"{shape}, bits={self.grid.bits}, group={self.grid.group}"

    def rows(self, part: Any) -> Float[Tensor, "..."]:
        """Return the selection of a slice or a tensor from the first axis, in float32."""
        codes = self.codes[part]
        n, lead = self.shape[-1], codes.shape[:-1]
        wide = unpack(codes.flatten(0, -2), self.grid.bits, n)
        scale, offset = (x[part].flatten(0, -2).view(torch.bfloat16)
                         for x in (self.scale, self.offset))  # fmt: skip
        return self.grid.values(wide, scale, offset).reshape(*lead, n)


class PackedOwner:
    """A module that stores some tensors as codes, or reads another module's codes."""

    packed_leaves: tuple[str, ...] = ()
    plain_class: Any = None

    def held(self, leaf: str) -> HeldTensor:
        """Return the codes of a tensor, from this module or the module it is tied to."""
        module: Any = self
        source = module.__dict__.get(PREFIX + leaf, [module])[0]
        return source._modules[PREFIX + leaf]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how to copy the module, whose class is created at run time."""
        module: Any = self
        return _empty, (self.plain_class, self.packed_leaves), module.__getstate__()


def hold_in_place(
    owner: nn.Module, leaf: str, kind: type[HeldTensor], told: Mapping[str, Any]
) -> None:
    """Replace a parameter of a module by an empty form."""
    old: Any = owner._parameters[leaf]
    with torch.device(old.device):
        held = kind(**told)
    _exchange(owner, leaf)
    owner.add_module(PREFIX + leaf, held.to(old.dtype).train(owner.training))


def read_from(owner: nn.Module, leaf: str, source: nn.Module) -> None:
    """Tie a parameter to another module's packed tensor of equal name."""
    _exchange(owner, leaf)
    owner.__dict__[PREFIX + leaf] = [source]  # in a list: no part of this module


def open_packed(module: nn.Module) -> None:
    """Replace codes by ordinary parameters, in every part of a module; ties are kept."""
    owners = [part for part in module.modules() if isinstance(part, PackedOwner)]
    opened: dict[HeldTensor, nn.Parameter] = {}
    for part in owners:
        for held in map(part.held, part.packed_leaves):
            if held not in opened:
                opened[held] = nn.Parameter(held.tensor.unpacked())
    left: list[tuple[Any, str, nn.Parameter]] = [
        (part, leaf, opened[part.held(leaf)]) for part in owners for leaf in part.packed_leaves
    ]
    for owner, leaf, parameter in left:
        owner._modules.pop(PREFIX + leaf, None)
        owner.__dict__.pop(PREFIX + leaf, None)
        owner._parameters[leaf] = parameter
    for owner in owners:
        owner.__class__ = owner.plain_class


def _exchange(owner: nn.Module, leaf: str) -> None:
    plain = getattr(owner, "plain_class", None) or type(owner)
    leaves = (*getattr(owner, "packed_leaves", ()), leaf)
    del owner._parameters[leaf]
    owner.__class__ = _class_of(plain, leaves)


@cache
def _class_of(plain: type[nn.Module], leaves: tuple[str, ...]) -> type[nn.Module]:
    """Return a subclass that reads parameters of these names from codes."""

    def reading(leaf: str) -> property:
        return property(lambda self: self.held(leaf).tensor)

    own: dict[str, Any] = {leaf: reading(leaf) for leaf in leaves}
    own |= {"packed_leaves": leaves, "plain_class": plain, "__module__": plain.__module__}
    return type(plain.__name__, (PackedOwner, plain), own)


def _empty(plain: type[nn.Module], leaves: tuple[str, ...]) -> nn.Module:
    cls = _class_of(plain, leaves)
    return cls.__new__(cls)
