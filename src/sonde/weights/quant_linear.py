"""A linear layer whose weight is kept as small whole numbers, and the ways to multiply by it.

Which way is fastest depends on the processor: on some a kernel for packed weights is many times
slower than float32. So each way is timed once on the machine where it runs, for each kind of shape,
and none that is slower than float32 is taken.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import ShapeError, StateError
from sonde.weights.packing import packed_length, unpack

KERNEL_GROUPS = (32, 64, 128, 256)
TRIES = 7
SIZES = (1, 4, 16, 64, 256)
"""Rows that a timing stands for: each call is counted to the next of these."""


@dataclass(frozen=True)
class Grid:
    """How numbers of a weight became codes.

    Parameters
    ----------
    bits : int
    group : int
        Entries of a row that share a scale; the last group may be shorter.
    """

    bits: int
    group: int

    def n_groups(self, n: int) -> int:
        """Return the groups of a row of ``n`` entries."""
        return -(-n // self.group)

    def values(
        self,
        codes: UInt8[Tensor, "out in"],
        scale: Float[Tensor, "out group"],
        offset: Float[Tensor, "out group"],
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "out in"]:
        """Return ``(code - 2^(bits - 1)) * scale + offset``."""
        n = codes.shape[1]
        wide = (x.to(dtype).repeat_interleave(self.group, 1)[:, :n] for x in (scale, offset))
        scales, offsets = wide
        return (codes.to(dtype) - 2 ** (self.bits - 1)) * scales + offsets


class QuantLinear(nn.Module):
    """A linear layer on packed codes, with bfloat16 scales and offsets for each group.

    The weight is ``(code - 2^(bits - 1)) * scale + offset``. It runs under gradients, as frozen
    layers do, but has none itself: ``backward`` through it raises. Scales are held as the bits of
    bfloat16 numbers, so that no ``.to(dtype)`` rounds them again.

    Parameters
    ----------
    in_features, out_features : int
    bits, group : int
    bias : bool
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self, in_features: int, out_features: int, bits: int, group: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.grid = Grid(bits, group)
        n_bytes, n_groups = packed_length(in_features, bits), self.grid.n_groups(in_features)
        self.register_buffer("codes", torch.zeros(out_features, n_bytes, dtype=torch.uint8))
        for name in ("scale", "offset"):
            bits_of = torch.zeros(out_features, n_groups, dtype=torch.int16)
            self.register_buffer(name, bits_of)
        self.bias = nn.Parameter(torch.zeros(out_features), False) if bias else None
        self._ready: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        """Return sizes, bits and group."""
        return (
            f"{self.in_features}, {self.out_features}, bits={self.grid.bits}, "
            f"group={self.grid.group}, bias={self.bias is not None}"
        )

    def dequantise(self) -> nn.Linear:
        """Return a plain linear layer with the same weight, which can be trained."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        made.weight = nn.Parameter(self.values())
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias.detach().clone())
        return made

    def values(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
        """Return the weight that the layer multiplies by."""
        codes = unpack(self.codes, self.grid.bits, self.in_features)
        scale, offset = (x.view(torch.bfloat16) for x in (self.scale, self.offset))
        return self.grid.values(codes, scale, offset, dtype)

    @property
    def ready_bytes(self) -> int:
        """Bytes of what the layer keeps beside its codes, to multiply by."""
        return sum(x.untyped_storage().nbytes() for x in self._ready.values())

    def forward(self, x: Shaped[Tensor, "*batch in"]) -> Shaped[Tensor, "*batch out"]:
        """Return ``x W^T + bias`` in the type of ``x``, by the fastest way that was timed."""
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"QuantLinear: expected rows of {self.in_features} features, got {x.shape[-1]}."
            )
        return _Product.apply(x, self)  # pyright: ignore[reportReturnType]

    def multiplied(self, x: Tensor) -> Tensor:
        """Return the product without a gradient."""
        rows = x.reshape(-1, self.in_features)
        way = self.fastest(len(rows), x.dtype)
        out = WAYS[way](self, rows).to(x.dtype)
        out = out if self.bias is None else out + self.bias.to(out)
        return out.reshape(*x.shape[:-1], self.out_features)

    def ways(self) -> list[str]:
        """Return the ways that this layer can be multiplied by on its device."""
        bits, group = self.grid.bits, self.grid.group
        aligned = self.in_features % group == 0 and self.out_features % 16 == 0
        on_cpu = self.codes.device.type == "cpu"
        if bits == 4 and group in KERNEL_GROUPS and aligned and on_cpu and "int4" in kernels():
            return ["float", "int4"]
        return ["float"]

    def fastest(self, n_rows: int, dtype: torch.dtype) -> str:
        """Return the fastest way for some number of rows, timed at the first question."""
        ways = self.ways()
        if len(ways) == 1:
            return ways[0]
        size = next((size for size in SIZES if n_rows <= size), SIZES[-1])
        shape = (self.in_features, self.out_features, self.grid.group)
        key = (size, dtype, shape, torch.get_num_threads())
        if key not in _FASTEST:
            draw = torch.Generator().manual_seed(0)
            rows = torch.randn(size, self.in_features, generator=draw).to(dtype)
            times = timed({way: lambda way=way: WAYS[way](self, rows) for way in ways})
            _FASTEST[key] = min(ways, key=times.__getitem__)
            self._ready.clear()  # only what is taken is kept
        return _FASTEST[key]

    def by_float(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Multiply by the unpacked float32 weight, which is kept from then on."""
        if "float" not in self._ready:
            self._ready["float"] = self.values()
        return functional.linear(rows.float(), self._ready["float"])

    def by_int4(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Multiply in bfloat16 by the processor's own packing of four-bit codes."""
        if "int4" not in self._ready:
            codes = unpack(self.codes, 4, self.in_features).to(torch.int32)
            both = [x.view(torch.bfloat16).T for x in (self.scale, self.offset)]
            self._ready["int4"] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
            self._ready["int4 scales"] = torch.stack(both, -1).contiguous()
        made = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.bfloat16().contiguous(),
            self._ready["int4"],
            self.grid.group,
            self._ready["int4 scales"],
        )
        return made.float()

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantLinear":
        self._ready.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantLinear":
        from copy import deepcopy

        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update({k: deepcopy(v, memo) for k, v in self.__getstate__().items()})
        return new


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantLinear) -> Tensor:
        return layer.multiplied(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise StateError(
            "QuantLinear: no gradient flows through packed weights. Take layer.dequantise() in its "
            "place, or the model that was compressed."
        )


Way = Callable[[QuantLinear, Tensor], Tensor]
WAYS: dict[str, Way] = {"float": QuantLinear.by_float, "int4": QuantLinear.by_int4}
_FASTEST: dict[Any, str] = {}
_KERNELS: dict[str, str] = {}


def timed(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median seconds of calls that take turns; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(TRIES + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def kernels() -> dict[str, str]:
    """Return the kernels for packed weights that work on this machine, with a description of each.

    Each is tried once on a small case; ``QuantLinear`` times the kernels that work, and takes the
    plain float32 product if no other kernel is faster.

    Examples
    --------
    >>> "float" in kernels()
    True
    """
    if not _KERNELS:
        _KERNELS["float"] = "float32 product with the unpacked weight"
        try:
            codes = torch.zeros(16, 32, dtype=torch.int32)
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
            rows, scales = (torch.ones(s, dtype=torch.bfloat16) for s in ((1, 32), (1, 16, 2)))
            torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, 32, scales)
        except (RuntimeError, NotImplementedError, AttributeError):
            return _KERNELS
        _KERNELS["int4"] = "bfloat16 rows by four-bit weights, groups of 32 to 256"
    return _KERNELS


def packed_linear(
    layer: nn.Linear, codes: Tensor, scale: Tensor, offset: Tensor, grid: Grid
) -> QuantLinear:
    """Return the packed layer that takes the place of a linear one; it keeps the bias."""
    new = QuantLinear(1, 1, grid.bits, grid.group, False)
    new.in_features, new.out_features = layer.in_features, layer.out_features
    place = layer.weight.device
    new.codes = codes.to(place)
    new.scale, new.offset = (x.to(place).view(torch.int16) for x in (scale, offset))
    new.bias = layer.bias
    return new.train(layer.training)
