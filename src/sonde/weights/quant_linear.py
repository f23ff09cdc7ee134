"""A linear layer with quantised weights, and its multiplication kernels.

A layer holds its codes once: in our own packing, which is unpacked block by block at each use, or
in the packing of the processor's kernel, which is read block by block for many rows. Which is
faster depends on the processor, so all are timed once on the machine where they run, for each
shape.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import ShapeError, StateError
from sonde.weights._processor_kernels import KERNELS, Kernel
from sonde.weights.packed_tensor import PackedTensor
from sonde.weights.packing import pack, packed_length, unpack

TRIES = 5
SIZES = (1, 8, 64, 128)
"""Rows that are timed: those of one token, and of texts."""
TOKEN_AND_TEXT = (1, 64)
"""Rows by which the packing is chosen."""
OUTPUTS = 64
"""Outputs that a kernel may pack together."""
BLOCK = 2**18
"""Numbers that are unpacked at once: they stay in the cache of a processor."""


@dataclass(frozen=True)
class Grid:
    """Quantisation grid of a weight.

    Parameters
    ----------
    bits : int
        Number of bits of a stored value.
    group : int
        Entries of a row that share a scale; the last group may be shorter.
    """

    bits: int
    group: int

    @classmethod
    def over(cls, bits: int, group: int, n: int) -> "Grid":
        """Return the grid for rows of ``n`` entries; a group of 0 becomes the whole row."""
        return cls(bits, group or max(n, 1))

    def n_groups(self, n: int) -> int:
        """Return the number of groups in a row of ``n`` entries."""
        return -(-n // self.group)

    def values(
        self,
        codes: UInt8[Tensor, "out in"],
        scale: Float[Tensor, "out group"],
        offset: Float[Tensor, "out group"],
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "out in"]:
        """Return ``(code - 2^(bits - 1)) * scale + offset``."""
        numbers = codes.to(torch.promote_types(dtype, torch.float32)).sub_(2 ** (self.bits - 1))
        full = codes.shape[1] // self.group
        parts = numbers[:, : full * self.group].unflatten(1, (full, self.group))
        rest = numbers[:, full * self.group :]
        # in place; the product of few bits is exact, so the sum alone is rounded
        parts.mul_(scale[:, :full, None]).add_(offset[:, :full, None])
        if rest.shape[1]:
            rest.mul_(scale[:, full:]).add_(offset[:, full:])
        return numbers.to(dtype)


class QuantLinear(nn.Module):
    """A linear layer with packed codes, and bfloat16 scales and offsets for each group.

    The weight is ``(code - 2^(bits - 1)) * scale + offset``. It runs under gradients, as frozen
    layers do, but has none itself: ``backward`` through it raises. Scales are held as the bits of
    bfloat16 numbers, so that no ``.to(dtype)`` rounds them again. After a first run on a processor
    whose kernel was faster, ``codes`` is empty until ``state_dict``, a copy or a move asks for it.

    Parameters
    ----------
    in_features : int
        Number of inputs of the layer.
    out_features : int
        Number of outputs of the layer.
    bits : int
        Number of bits of a code.
    group : int
        Number of weights that share a scale; 0 for whole rows.
    bias : bool
        Whether the layer has a bias.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor
    like: Tensor

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
        # follows ``.to(dtype)``, so that ``weight`` has the type that the model computes in
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.bias = nn.Parameter(torch.zeros(out_features), False) if bias else None
        self._kernel: Kernel | None = None

    def extra_repr(self) -> str:
        """Return sizes, bits and group."""
        return (
            f"{self.in_features}, {self.out_features}, bits={self.grid.bits}, "
            f"group={self.grid.group}, bias={self.bias is not None}"
        )

    def dequantise(self) -> nn.Linear:
        """Return a plain, trainable linear layer with an equal weight in float32."""
        return plain_linear(self.values(), self.bias)

    def values(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
        """Return the weight that the layer multiplies by."""
        return self._unpacked(slice(None), self.own_codes(), dtype)

    @property
    def weight(self) -> Tensor:
        """The weight, for code that reads it outside the layer; it is unpacked on use."""
        shape = self.out_features, self.in_features
        return PackedTensor(self, shape, self.like.dtype, self.scale.device)

    def rows(self, part: Any) -> Float[Tensor, "row in"]:
        """Return the weight rows that a slice or a tensor selects, in float32."""
        return self._unpacked(part, self.own_codes()[part], torch.float32)

    def own_codes(self) -> UInt8[Tensor, "out bytes"]:
        """Return the codes in sonde's packing, from any current packing."""
        return self.codes if self._kernel is None else pack(self._kernel.codes(), self.grid.bits)

    def take_back(self) -> None:
        """Restore the codes to sonde's packing, until the next run."""
        if self._kernel is None:
            return
        self.codes, self._kernel = self.own_codes(), None

    @property
    def kernel_bytes(self) -> int:
        """Bytes of the kernel's packing; 0 if the layer uses sonde's packing."""
        return 0 if self._kernel is None else self._kernel.n_bytes

    def forward(self, x: Shaped[Tensor, "*batch in"]) -> Shaped[Tensor, "*batch out"]:
        """Return ``x W^T + bias`` in the dtype of ``x``, by the fastest measured method."""
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"QuantLinear: expected rows of {self.in_features} features, got {x.shape[-1]}."
            )
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.multiplied(x)
        return NoGradient.apply(x, self)  # pyright: ignore[reportReturnType]

    def multiplied(self, x: Tensor) -> Tensor:
        """Return product plus bias, without a gradient."""
        out = self.product(x)
        return out if self.bias is None else out + self.bias.to(out)

    def product(self, x: Shaped[Tensor, "*batch in"]) -> Shaped[Tensor, "*batch out"]:
        """Return ``x W^T`` without a gradient."""
        rows = x.reshape(-1, self.in_features)
        if self._kernel is None:
            self._take(*self._timed())
        out = (self.by_blocks(rows) if self._kernel is None else self.by_kernel(rows)).to(x.dtype)
        return out.reshape(*x.shape[:-1], self.out_features)

    def ways(self) -> list[str]:
        """Return the multiplication methods of this layer on its device."""
        if self.scale.device.type != "cpu":
            return ["blocks"]
        shape = (self.in_features, self.out_features)
        fit = [word for word, kind in KERNELS.items() if kind.fits(self.grid, *shape)]
        return ["blocks", *(word for word in fit if word in kernels())]

    def fastest(self) -> str:
        """Return the faster method, measured on one and on many rows at the first call."""
        return self._timed()[0]

    def _timed(self) -> tuple[str, int]:
        """Return the faster method, and the most rows for which the kernel is faster."""
        ways = self.ways()
        key = (self.in_features, self.out_features, self.grid, torch.get_num_threads())
        if len(ways) == 1:
            return ways[0], 0
        if key not in _FASTEST:
            both = {way: self._without_hooks() for way in ways}
            for way, layer in both.items():
                layer._take(way)
            kernel, gain, few = both[ways[1]]._kernel, 1.0, 0
            assert kernel is not None
            for size in SIZES:
                rows = torch.ones(size, self.in_features)
                calls: dict[str, Callable[[], Any]] = {
                    "few": lambda rows=rows: kernel.few_rows(rows),
                    "many": lambda rows=rows: kernel.many_rows(rows),
                }
                if size in TOKEN_AND_TEXT:
                    calls["blocks"] = lambda rows=rows: both["blocks"].by_blocks(rows)
                times = timed(calls)
                if times["few"] < times["many"]:
                    few = size
                if size in TOKEN_AND_TEXT:
                    gain *= times["blocks"] / min(times["few"], times["many"])
            few = few if few < SIZES[-1] else sys.maxsize
            _FASTEST[key] = (ways[1] if gain > 1 else "blocks", few)
        return _FASTEST[key]

    def _without_hooks(self) -> "QuantLinear":
        """Return a layer with the same codes, without hooks or bias."""
        layer = QuantLinear(
            self.in_features, self.out_features, self.grid.bits, self.grid.group, bias=False
        )
        layer.codes, layer.scale, layer.offset = self.own_codes(), self.scale, self.offset
        return layer

    def by_blocks(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Multiply in float32, block of outputs by block, without keeping an unpacked weight."""
        x, step = rows.float(), max(1, BLOCK // max(self.in_features, 1))
        out = x.new_empty(len(x), self.out_features)
        for start in range(0, self.out_features, step):
            part = slice(start, start + step)
            weight = self._unpacked(part, self.codes[part], torch.float32)
            out[:, part] = functional.linear(x, weight)
        return out

    def by_kernel(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Multiply with the processor's own packing of the codes."""
        assert self._kernel is not None
        few = len(rows) <= self._kernel.few
        return self._kernel.few_rows(rows) if few else self._kernel.many_rows(rows)

    def _unpacked(self, part: Any, codes: Tensor, dtype: torch.dtype) -> Tensor:
        scale, offset = (x[part].view(torch.bfloat16) for x in (self.scale, self.offset))
        wide = unpack(codes, self.grid.bits, self.in_features)
        return self.grid.values(wide, scale, offset, dtype)

    def _take(self, way: str, few: int = sys.maxsize) -> None:
        """Keep the codes only in the packing of a method.

        Up to ``few`` rows are multiplied by the kernel itself.
        """
        if way == "blocks" or self._kernel is not None:
            return
        step = max(1, BLOCK // max(self.in_features, 1) // OUTPUTS) * OUTPUTS
        parts = self.codes.split(step)
        blocks = (unpack(codes, self.grid.bits, self.in_features) for codes in parts)
        scale, offset = (x.view(torch.bfloat16) for x in (self.scale, self.offset))
        self._kernel = KERNELS[way](blocks, scale, offset, self.grid.group)
        self._kernel.few = few
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
    """The product of a packed layer, which runs in autograd without a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        """Return ``layer.multiplied(x)``."""
        return layer.multiplied(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Raise, because no gradient flows through packed weights."""
        raise StateError(
            "Packed layer: no gradient flows through packed weights. Take "
            "sonde.weights.unpacked(model): the same weights in plain layers."
        )


def plain_linear(weight: Float[Tensor, "out in"], bias: Tensor | None) -> nn.Linear:
    """Return a plain linear layer with a weight and a copy of a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


_FASTEST: dict[Any, tuple[str, int]] = {}
_KERNELS: dict[str, str] = {}


def timed(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median seconds of alternating calls, without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(TRIES + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def kernels() -> dict[str, str]:
    """Return the packed-weight kernels that work on this machine, with descriptions.

    Each is tried once on a small case. Without a kernel a weight is unpacked at each use: that
    saves memory, and is slower than a plain float32 layer.

    Examples
    --------
    >>> "blocks" in kernels()
    True
    """
    if not _KERNELS:
        _KERNELS["blocks"] = "float32 product with the weight unpacked block by block"
        _KERNELS.update({w: kind.about for w, kind in KERNELS.items() if kind.works()})
    return _KERNELS
