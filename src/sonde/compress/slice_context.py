"""Predict each part of a latent from the earlier parts, so that it takes fewer bits.

For latents (row, channel, high, wide) of trained codecs. It is fast, because it takes ten steps
and not one step for each number; a net that predicts number by number would need fewer bits.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.compress._range_coder import normal_bytes, read_normal
from sonde.compress._wire import Reader, count_bytes, refuse_others, shape_bytes, tensors_key
from sonde.compress.entropy_bottleneck import LEAST
from sonde.compress.sequence_coder import computing
from sonde.core.codec import Codec
from sonde.core.errors import InputError, StateError

SMALLEST, LARGEST, N_SCALES, MEAN_STEP = 0.11, 256.0, 64, 1 / 64


@final
class SliceContext(nn.Module):
    """Bits of each row's latent, given the parts that were decoded before each part.

    Channels are cut into slices, each coded in two passes of a checkerboard. A net gives the mean
    and the spread of each number from all earlier passes: at the places around it by a convolution,
    at all places by attention to the earlier slices. With ``points`` each place attends to a few
    places alone, whose offsets ``d_p`` it learns: ``sum_p a_p v(u + d_p)``, ``a`` a softmax over
    ``q k(u + d_p) / sqrt(width)``. ``k`` and ``v`` are interpolated between the four places around,
    and zero outside of the map. The offsets start as steps of one place to the left, right, top,
    bottom and the corners, then of two, and so on.

    Range        bits of a row, from 0.
    Cost         two small convolutions and an attention over places for each pass; ``points``
                 instead of all places for each place.
    Assumes      maps (row, channel, high, wide).
    Differs      from the paper: attention of one head; what rounding lost is not predicted; further
                 inputs (a hyperprior) come as ``hyper``; the transform is the user's.

    Parameters
    ----------
    channels : int
        Number of channels of the latent.
    slices : sequence of int, optional
        Channels of each slice; by default up to five, small ones first.
    width : int, default=32
        Number of features of the nets.
    hyper : int, default=0
        Channels of a map that both sides know.
    checkerboard : bool, default=True
        Code each slice in two passes, so that the second one reads the places around it.
    attention : bool, default=True
        Let each slice attend to all places of the earlier slices.
    points : int, default=0
        Number of places with learned offsets that each place attends to; 0 for all places.

    Examples
    --------
    >>> context = SliceContext(6).eval()
    >>> context.slices, context(torch.zeros(2, 6, 4, 4))[1].shape
    ((1, 1, 1, 1, 2), torch.Size([2]))

    References
    ----------
    wang2025s2lic
    """

    paper: ClassVar[str] = "wang2025s2lic"

    def __init__(
        self,
        channels: int,
        slices: Sequence[int] | None = None,
        width: int = 32,
        hyper: int = 0,
        checkerboard: bool = True,
        attention: bool = True,
        points: int = 0,
    ) -> None:
        super().__init__()
        self.slices = tuple(slices) if slices is not None else _uneven(channels)
        if sum(self.slices) != channels or min(self.slices, default=0) < 1:
            raise InputError(
                f"SliceContext: expected slices that add up to {channels} channels, got "
                f"{self.slices}."
            )
        if points < 0 or (points and not attention):
            raise InputError(
                "SliceContext: expected a number of points from 0, and attention if there are any, "
                f"got points={points}, attention={attention}."
            )
        self.channels, self.hyper, self.checkerboard = channels, hyper, checkerboard
        n_passes = 2 if checkerboard else 1
        near, wide, ahead = [], [], []
        for i, size in enumerate(self.slices):
            for _ in range(n_passes):
                near.append(nn.Conv2d(channels + hyper, width, 5, padding=2))
                given = channels + hyper, width
                attends = _Deformable(*given, points) if points else _Attention(*given)
                wide.append(attends if attention and i else None)
                ahead.append(
                    nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 1), nn.GELU(),
                                  nn.Conv2d(width, 2 * size, 1))
                )  # fmt: skip
        self.near, self.ahead = nn.ModuleList(near), nn.ModuleList(ahead)
        self.wide = nn.ModuleDict({str(i): a for i, a in enumerate(wide) if a is not None})

    def forward(
        self,
        y: Float[Tensor, "row channel high wide"],
        hyper: Float[Tensor, "row other high wide"] | None = None,
        draw: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "row channel high wide"], Float[Tensor, "row"]]:
        """Return the latent as the decoder would get it, and the bits of each row.

        Parameters
        ----------
        y : Float[Tensor, "row channel high wide"]
        hyper : Float[Tensor, "row hyper high wide"], optional
        draw : torch.Generator, optional
            Of the noise that stands for rounding while training.
        """
        decoded, bits = torch.zeros_like(y), y.new_zeros(len(y))
        noise = torch.rand(y.shape, generator=draw, dtype=y.dtype, device=y.device) - 0.5
        for step, (channels, places) in enumerate(self.passes(y)):
            mean, scale = self.predicted(step, decoded, hyper)
            own = y[:, channels] - mean
            new = own + noise[:, channels] if self.training else own.round()
            size = new.abs()  # in the left tail, where differences are exact
            mass = (_below((0.5 - size) / scale) - _below((-0.5 - size) / scale)).clamp(min=LEAST)
            bits = bits - (mass.log2() * places).flatten(1).sum(1)
            decoded = decoded.clone()
            decoded[:, channels] = torch.where(places, new + mean, decoded[:, channels])
        return decoded, bits

    def passes(self, y: Tensor) -> Iterator[tuple[slice, Bool[Tensor, "high wide"]]]:
        """Yield the channels and the positions of each pass, in the order of decoding."""
        high, wide = (torch.arange(n, device=y.device) for n in y.shape[2:])
        even = (high[:, None] + wide) % 2 == 0
        first = 0
        for size in self.slices:
            channels = slice(first, first + size)
            yield from ((channels, m) for m in ((even, ~even) if self.checkerboard else
                                                (torch.ones_like(even),)))  # fmt: skip
            first += size

    def predicted(
        self, step: int, known: Tensor, hyper: Tensor | None
    ) -> tuple[Float[Tensor, "row size high wide"], Float[Tensor, "row size high wide"]]:
        """Return the mean and standard deviation that pass ``step`` predicts for its slice.

        Entries of ``known`` that are not yet decoded must be 0.
        """
        if (0 if hyper is None else hyper.shape[1]) != self.hyper:
            raise InputError(
                f"SliceContext: expected a map of {self.hyper} channels that encoder and "
                f"decoder share, got {0 if hyper is None else hyper.shape[1]}."
            )
        x = known if hyper is None else torch.cat([known, hyper], 1)
        context = self.near[step](x)
        if str(step) in self.wide:
            context = context + self.wide[str(step)](x)
        mean, spread = self.ahead[step](context).chunk(2, 1)
        # clamped before the exponential, whose gradient is not finite far above
        return mean, spread.clamp(float(np.log(SMALLEST)), float(np.log(LARGEST))).exp()

    def codec(self, hyper: Float[Tensor, "row hyper high wide"] | None = None) -> "SliceCodec":
        """Return the codec of the learned network; channels come last."""
        return SliceCodec(self, hyper)


class _Attention(nn.Module):
    """Attention of every position to all positions of the decoded map."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, width, 1) for _ in range(3))

    def forward(self, x: Float[Tensor, "row channel high wide"]) -> Tensor:
        q, k, v = (m(x).flatten(2).mT for m in (self.query, self.key, self.value))
        return nn.functional.scaled_dot_product_attention(q, k, v).mT.unflatten(2, x.shape[2:])


class _Deformable(nn.Module):
    """Attention of every position to a few learned, fractional positions of the decoded map."""

    def __init__(self, channels: int, width: int, points: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, width, 1) for _ in range(3))
        self.offset = nn.Conv2d(width, 2 * points, 1)
        around = [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]
        start = [
            (1 + p // len(around)) * step for p in range(points) for step in around[p % len(around)]
        ]
        with torch.no_grad():
            self.offset.weight.zero_()
            self.offset.get_parameter("bias").copy_(torch.tensor(start))

    def forward(self, x: Float[Tensor, "row channel high wide"]) -> Tensor:
        query, high, wide = self.query(x), *x.shape[2:]
        # (row, point, high, wide, axis): lines down and columns across, counted in places
        step = self.offset(query).unflatten(1, (-1, 2)).movedim(2, -1)
        axes = (torch.arange(n, device=x.device, dtype=x.dtype) for n in (high, wide))
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) + step
        grid = (2 * places + 1) / places.new_tensor([high, wide]) - 1
        both = nn.functional.grid_sample(
            torch.cat((self.key(x), self.value(x)), 1), grid.flip(-1).flatten(1, 2),
            align_corners=False,
        )  # fmt: skip
        key, value = both.unflatten(2, (-1, high)).chunk(2, 1)
        score = (query.unsqueeze(2) * key).sum(1, keepdim=True) / query.shape[1] ** 0.5
        return (score.softmax(2) * value).sum(2)


@final
@dataclass(frozen=True, eq=False)
class SliceCodec(Codec):
    """Latents rounded to whole steps from means that are predicted pass by pass.

    The decoder repeats the encoder's forwards. Means are rounded to 1/64 and spreads to a table of
    64, so that different last digits rarely matter; a checksum of the numbers shows if they did.

    Range        float32 in the encoded shape (*rows, high, wide, channel); off by half a step.
    Cost         one prediction for each pass, in both directions.
    Assumes      both sides hold the same net: the stream has its fingerprint.

    Parameters
    ----------
    context : SliceContext
        The trained net that gives the mean and the spread of each number.
    hyper : Float[Tensor, "row hyper high wide"], optional
        Values that the encoder and the decoder both know, on the grid of the latents; they are read
        by every pass.

    References
    ----------
    wang2025s2lic
    """

    context: SliceContext
    hyper: Float[Tensor, "row hyper high wide"] | None = None
    paper: ClassVar[str] = "wang2025s2lic"
    examples: ClassVar[tuple[dict, ...]] = ()

    @property
    def width(self) -> int:
        """Number of channels."""
        return self.context.channels

    def most_lost(self, x: Tensor) -> float:
        """Return the largest fraction of the energy lost by rounding: half a step per entry."""
        norm = float(x.double().square().sum())
        return (1 + 1e-5) * x.numel() / 4 / norm if norm else float("inf")

    @torch.no_grad()
    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, fingerprint, and the rounded differences of each pass."""
        y, threads = _as_maps(x), torch.get_num_threads()
        decoded, streams, check = torch.zeros_like(y), list[bytes](), 0
        with computing("SliceCodec", self.context, threads):
            for step, (channels, places) in enumerate(self.context.passes(y)):
                mean, scale = self._predicted(step, decoded)
                own = (y[:, channels].double() - mean).round()
                codes = own[:, :, places].flatten().numpy()
                scales = scale[:, :, places].flatten().numpy()
                streams.append(normal_bytes("SliceCodec", codes, 0 * scales, scales))
                check = zlib.crc32(codes.astype("<i8").tobytes(), check)
                decoded[:, channels] = torch.where(
                    places, (own + mean).float(), decoded[:, channels]
                )
        head = shape_bytes(x) + self._key() + count_bytes(threads, check)
        return head + b"".join(streams)

    @torch.no_grad()
    def unpack(self, payload: bytes) -> Tensor:
        """Return the latent, pass by pass."""
        reader = Reader("SliceCodec", payload)
        shape = reader.shape()
        refuse_others(reader, self._key())
        threads, check, checksum = reader.count(), reader.count(), 0
        decoded = torch.zeros_like(_as_maps(torch.empty(shape)))
        with computing("SliceCodec", self.context, threads):
            for step, (channels, places) in enumerate(self.context.passes(decoded)):
                mean, scale = self._predicted(step, decoded)
                scales = scale[:, :, places]
                flat = scales.flatten().numpy()
                codes = read_normal(reader, 0 * flat, flat)
                checksum = zlib.crc32(codes.astype("<i8").tobytes(), checksum)
                own = torch.zeros_like(mean)
                own[:, :, places] = torch.from_numpy(codes).double().reshape(scales.shape)
                decoded[:, channels] = torch.where(
                    places, (own + mean).float(), decoded[:, channels]
                )
        if checksum != check:
            raise StateError(
                "SliceCodec.decode: the checksum of the decoded numbers differs from that of "
                "the encoded numbers: this machine predicts other means. Decode where the "
                "stream was encoded."
            )
        return decoded.movedim(1, -1).reshape(shape)

    def _predicted(self, step: int, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return rounded means and standard deviations in float64."""
        if not known.numel():
            passes = 2 if self.context.checkerboard else 1
            none = known[:, : self.context.slices[step // passes]].double()
            return none, none
        mean, scale = self.context.predicted(step, known, self.hyper)
        table = torch.logspace(
            float(np.log2(SMALLEST)), float(np.log2(LARGEST)), N_SCALES, base=2.0,
            dtype=torch.float64,
        )  # fmt: skip
        ratio = float(table[1] / table[0])
        index = ((scale.double() / SMALLEST).log() / np.log(ratio)).round().long()
        return (mean.double() / MEAN_STEP).round() * MEAN_STEP, table[index.clamp(0, N_SCALES - 1)]

    def _key(self) -> bytes:
        further = () if self.hyper is None else (self.hyper,)
        return tensors_key(*self.context.state_dict().values(), *further)


def _as_maps(x: Tensor) -> Float[Tensor, "row channel high wide"]:
    """Return maps of a tensor with channels last; missing axes get size 1."""
    wide = x.reshape(*[1] * (3 - x.ndim), *x.shape) if x.ndim < 3 else x
    rows = torch.Size(wide.shape[:-3]).numel()
    return wide.reshape(rows, *wide.shape[-3:]).movedim(-1, 1).contiguous()


def _uneven(channels: int) -> tuple[int, ...]:
    """Return the sizes of up to five slices, each about twice as large as the previous one."""
    n = min(5, channels)
    sizes = [max(1, round(channels * 2**i / (2**n - 1))) for i in range(n - 1)]
    while sum(sizes) >= channels:
        sizes.pop()
    return tuple(sorted((*sizes, channels - sum(sizes))))


def _below(x: Tensor) -> Tensor:
    """Return the cumulative normal distribution at each number."""
    return 0.5 * torch.erfc(-x / 2**0.5)
