"""A linear layer whose weight is kept as small whole numbers, and the ways to multiply by it.

A layer holds its codes once: in our own packing, which is unpacked block by block at each use, or
in the packing of the processor's kernel. Which is faster depends on the processor, so both are
timed once on the machine where they run, for each shape.
"""

import copy
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
from sonde.weights.packing import pack, packed_length, unpack

KERNEL_GROUPS = (32, 64, 128, 256)
TRIES = 7
SIZES = (1, 64)
"""Rows that are timed: those of one token and of a text."""
BLOCK = 2**18
"""Numbers that are unpacked at once: they stay in the cache of a processor."""
EYE = 64
"""Rows of an identity by which codes are read back from a kernel's packing."""


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
        n, half = codes.shape[1], 2 ** (self.bits - 1)
        found = functional.pad(codes.to(dtype) - half, (0, -n % self.group))
        found = found.unflatten(1, (-1, self.group))
        found = torch.addcmul(offset[..., None].to(dtype), found, scale[..., None].to(dtype))
        return found.flatten(1)[:, :n]


class QuantLinear(nn.Module):
    """A linear layer on packed codes, with bfloat16 scales and offsets for each group.

    The weight is ``(code - 2^(bits - 1)) * scale + offset``. It runs under gradients, as frozen
    layers do, but has none itself: ``backward`` through it raises. Scales are held as the bits of
    bfloat16 numbers, so that no ``.to(dtype)`` rounds them again. After a first run on a processor
    whose kernel was faster, ``codes`` is empty until ``state_dict``, a copy or a move asks for it.

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
        self._kernel: tuple[Tensor, Tensor] | None = None

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
        return self._unpacked(slice(None), self.own_codes(), dtype)

    def own_codes(self) -> UInt8[Tensor, "out bytes"]:
        """Return the codes in our own packing, whichever the layer holds."""
        if self._kernel is None:
            return self.codes
        packed, scales = self._kernel
        plain = torch.stack([torch.ones_like(scales[..., 0]), torch.zeros_like(scales[..., 1])], -1)
        found = torch.empty(self.out_features, self.in_features, dtype=torch.uint8)
        for start in range(0, self.in_features, EYE):
            # small whole numbers are exact in bfloat16, so rows of an identity read codes back
            rows = torch.eye(self.in_features, dtype=torch.bfloat16)[start : start + EYE]
            made = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, self.grid.group, plain)
            found[:, start : start + EYE] = (made.T + 8).to(torch.uint8)
        return pack(found, self.grid.bits)

    def take_back(self) -> None:
        """Hold the codes in our own packing again, until the next run."""
        if self._kernel is None:
            return
        self.codes, self._kernel = self.own_codes(), None

    @property
    def kernel_bytes(self) -> int:
        """Bytes that the kernel's packing takes; 0 if the layer holds its own."""
        return sum(x.untyped_storage().nbytes() for x in self._kernel or ())

    def forward(self, x: Shaped[Tensor, "*batch in"]) -> Shaped[Tensor, "*batch out"]:
        """Return ``x W^T + bias`` in the type of ``x``, by the faster way that was timed."""
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"QuantLinear: expected rows of {self.in_features} features, got {x.shape[-1]}."
            )
        return NoGradient.apply(x, self)  # pyright: ignore[reportReturnType]

    def multiplied(self, x: Tensor) -> Tensor:
        """Return the product without a gradient."""
        rows = x.reshape(-1, self.in_features)
        self._take(self.fastest())
        out = (self.by_blocks(rows) if self._kernel is None else self.by_kernel(rows)).to(x.dtype)
        out = out if self.bias is None else out + self.bias.to(out)
        return out.reshape(*x.shape[:-1], self.out_features)

    def ways(self) -> list[str]:
        """Return the ways that this layer can be multiplied by on its device."""
        bits, group = self.grid.bits, self.grid.group
        aligned = self.in_features % group == 0 and self.out_features % 16 == 0
        on_cpu = self.scale.device.type == "cpu"
        if bits == 4 and group in KERNEL_GROUPS and aligned and on_cpu and "int4" in kernels():
            return ["blocks", "int4"]
        return ["blocks"]

    def fastest(self) -> str:
        """Return the faster way, timed on one row and on many at the first question."""
        ways = self.ways()
        key = (self.in_features, self.out_features, self.grid.group, torch.get_num_threads())
        if len(ways) == 1:
            return ways[0]
        if key not in _FASTEST:
            both = {way: copy.deepcopy(self) for way in ways}
            for way, layer in both.items():
                layer._take(way)
            gain = 1.0
            for size in SIZES:
                rows = torch.ones(size, self.in_features)
                times = timed(
                    {"blocks": lambda rows=rows: both["blocks"].by_blocks(rows),
                     "int4": lambda rows=rows: both["int4"].by_kernel(rows)}
                )  # fmt: skip
                gain *= times["blocks"] / times["int4"]
            _FASTEST[key] = "int4" if gain > 1 else "blocks"
        return _FASTEST[key]

    def by_blocks(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Multiply in float32, block of outputs by block; no unpacked weight is kept."""
        x, step = rows.float(), max(1, BLOCK // max(self.in_features, 1))
        out = x.new_empty(len(x), self.out_features)
        for start in range(0, self.out_features, step):
            part = slice(start, start + step)
            weight = self._unpacked(part, self.codes[part], torch.float32)
            out[:, part] = functional.linear(x, weight)
        return out

    def by_kernel(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Multiply in bfloat16 by the processor's own packing of four-bit codes."""
        assert self._kernel is not None
        packed, scales = self._kernel
        made = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.bfloat16().contiguous(), packed, self.grid.group, scales
        )
        return made.float()

    def _unpacked(self, part: slice, codes: Tensor, dtype: torch.dtype) -> Tensor:
        scale, offset = (x[part].view(torch.bfloat16) for x in (self.scale, self.offset))
        wide = unpack(codes, self.grid.bits, self.in_features)
        return self.grid.values(wide, scale, offset, dtype)

    def _take(self, way: str) -> None:
        """Hold the codes in the packing of a way, and in no other."""
        if way == "blocks" or self._kernel is not None:
            return
        codes = unpack(self.codes, 4, self.in_features).to(torch.int32)
        both = [x.view(torch.bfloat16).T for x in (self.scale, self.offset)]
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self._kernel = packed, torch.stack(both, -1).contiguous()
        self.codes = self.codes.new_empty(0)

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantLinear":
        self.take_back()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.take_back()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.take_back()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self.take_back()
        return self.__dict__.copy()


class NoGradient(torch.autograd.Function):
    """The product of a packed layer: it runs under gradients and has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        """Return ``layer.multiplied(x)``."""
        return layer.multiplied(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Raise: no gradient flows through packed weights."""
        raise StateError(
            "Packed layer: no gradient flows through packed weights. Take a plain layer in its "
            "place, or the model that was compressed."
        )


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

    Each is tried once on a small case. Without a kernel a weight is unpacked at each use: that
    saves memory, and is slower than a plain float32 layer.

    Examples
    --------
    >>> "blocks" in kernels()
    True
    """
    if not _KERNELS:
        _KERNELS["blocks"] = "float32 product with the weight unpacked block by block"
        try:
            codes = torch.zeros(16, 32, dtype=torch.int32)
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
            rows, scales = (torch.ones(s, dtype=torch.bfloat16) for s in ((1, 32), (1, 16, 2)))
            torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, 32, scales)
        except (AttributeError, NotImplementedError):
            # a version without the operator; a build whose processor has no kernel for it
            return _KERNELS
        _KERNELS["int4"] = "bfloat16 rows by four-bit weights, groups of 32 to 256"
    return _KERNELS
