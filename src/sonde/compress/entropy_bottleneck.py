"""A learned distribution for each latent channel: bits in training, then a codec.

For a net that is cut in two, whose first half sends few bits to the second. Train with the bits in
the loss, then take the codec with its fixed tables.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from sonde.compress._range_coder import read_table, table_bytes
from sonde.compress._wire import Reader, count_bytes, refuse_others, shape_bytes, tensors_key
from sonde.core.codec import Codec
from sonde.core.errors import InputError

WIDTHS = (1, 3, 3, 3, 1)
START, LEAST, TAIL, MOST_WIDE = 10.0, 1e-9, 2.0**-20, 1 << 12
_MOST_CODE = 1 << 62


@final
class EntropyBottleneck(nn.Module):
    """Bits of each row's latent, by a learned distribution for each channel.

    The distribution function of a channel is a small monotone net. A whole number has the mass
    between half a step below and half a step above. While training, uniform noise of one step
    stands for the rounding; in eval mode the latent is rounded to whole steps from the median.

    Range        bits of a row, from 0; at least 1e-9 of mass for every number.
    Cost         about 60 products for each entry.
    Assumes      channels independent of one another and of their places, as far as training makes
                 them independent.
    Differs      from the paper: the distribution alone; encoder, decoder and losses are yours.

    Parameters
    ----------
    channels : int
        Number of channels of the latent.

    Examples
    --------
    >>> bottleneck = EntropyBottleneck(4).eval()
    >>> latent, bits = bottleneck(torch.zeros(2, 4, 3, 3))
    >>> latent.shape, bits.shape
    (torch.Size([2, 4, 3, 3]), torch.Size([2]))

    References
    ----------
    matsubara2022supervised
    balle2018variational
    """

    paper: ClassVar[str] = "matsubara2022supervised"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        scale = START ** (1 / (len(WIDTHS) - 1))
        shapes = list(zip(WIDTHS[1:], WIDTHS[:-1], strict=True))
        self.matrices = nn.ParameterList(
            torch.full((channels, *s), float(np.log(np.expm1(1 / scale / s[0])))) for s in shapes
        )
        draw = torch.Generator().manual_seed(0)
        self.biases = nn.ParameterList(
            torch.rand(channels, n, 1, generator=draw) - 0.5 for n, _ in shapes
        )
        self.factors = nn.ParameterList(torch.zeros(channels, n, 1) for n, _ in shapes[:-1])

    def forward(
        self, y: Float[Tensor, "row channel *place"], draw: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "row channel *place"], Float[Tensor, "row"]]:
        """Return the latent as the decoder would get it, and the bits of each row.

        Parameters
        ----------
        y : Float[Tensor, "row channel *place"]
        draw : torch.Generator, optional
            Of the noise, while training.
        """
        flat = y.movedim(1, 0).reshape(self.channels, 1, -1)
        if self.training:
            noise = torch.rand(flat.shape, generator=draw, device=flat.device, dtype=flat.dtype)
            flat = flat + noise - 0.5
        else:
            middle = self.medians().to(flat)[:, None, None]
            flat = (flat - middle).round() + middle
        bits = -self.mass(flat).log2()
        back = [self.channels, len(y), *y.shape[2:]]
        each = bits.reshape(back).movedim(0, 1).flatten(1).sum(1)
        return flat.reshape(back).movedim(0, 1), each

    def mass(self, x: Float[Tensor, "channel 1 n"]) -> Float[Tensor, "channel 1 n"]:
        """Return the probability of the rounding interval around each number of a channel."""
        low, high = self._logits(x - 0.5), self._logits(x + 0.5)
        # both on the side of the median where sigmoids are small and exact
        side = -(low + high).sign().detach()
        side = torch.where(side == 0, 1.0, side)
        masses = ((side * high).sigmoid() - (side * low).sigmoid()).abs()
        return masses.clamp(min=LEAST)

    @torch.no_grad()
    def medians(self) -> Float[Tensor, "channel"]:
        """Return the median of each channel."""
        low, high = (torch.full((self.channels, 1, 1), v).double() for v in (-1e5, 1e5))
        for _ in range(60):
            middle = (low + high) / 2
            above = self._logits(middle.to(self.biases[0])).double() > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return ((low + high) / 2).flatten()

    @torch.no_grad()
    def codec(self) -> "LatentCodec":
        """Return the codec of the learned distributions, with fixed tables; channels come last."""
        middle = self.medians()
        steps = torch.arange(-MOST_WIDE, MOST_WIDE + 1)
        at = (middle[:, None] + steps)[:, None].to(self.biases[0])
        low, high = (self._logits(at + s).double().sigmoid()[:, 0] for s in (-0.5, 0.5))
        inside = (high > TAIL / 2) & (low < 1 - TAIL / 2)
        first = inside.to(torch.int8).argmax(1)
        n = int(inside.sum(1).max())
        index = (first[:, None] + torch.arange(n)).clamp(max=len(steps) - 1)
        mass = self.mass(at)[:, 0].double().gather(1, index) * inside.gather(1, index)
        tables = torch.cat([mass, (1 - mass.sum(1, keepdim=True)).clamp(min=TAIL)], 1)
        return LatentCodec(middle, first - MOST_WIDE, tables / tables.sum(1, keepdim=True))

    def _logits(self, x: Float[Tensor, "channel 1 n"]) -> Float[Tensor, "channel 1 n"]:
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = softplus(matrix) @ x + bias
            if i < len(self.factors):
                x = x + self.factors[i].tanh() * x.tanh()
        return x


@final
@dataclass(frozen=True, eq=False)
class LatentCodec(Codec):
    """Latents rounded to whole steps from the medians, by a fixed table for each channel.

    Numbers outside of a table are marked in it and written behind in full.

    Range        float32 in the encoded shape; off by half a step at most.
    Cost         O(n).
    Assumes      both sides hold the same tables: the stream has their fingerprint.

    Parameters
    ----------
    medians : Float[Tensor, "channel"]
        Median of each channel.
    lows : Int[Tensor, "channel"]
        First number of each table.
    tables : Float[Tensor, "channel symbol"]
        The last symbol stands for all numbers outside.

    References
    ----------
    balle2018variational
    """

    medians: Float[Tensor, "channel"]
    lows: Int[Tensor, "channel"]
    tables: Float[Tensor, "channel symbol"]
    paper: ClassVar[str] = "balle2018variational"
    examples: ClassVar[tuple[dict, ...]] = ()

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.medians)

    def most_lost(self, x: Tensor) -> float:
        """Return the largest fraction of the energy lost by rounding: half a step per entry."""
        norm = float(x.double().square().sum())
        return (1 + 1e-6) * x.numel() / 4 / norm if norm else float("inf")

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, fingerprint, symbols, and numbers outside of the tables."""
        steps = (x.double() - self.medians).round().reshape(-1, self.width)
        if steps.numel() and float(steps.abs().max()) > _MOST_CODE:
            raise InputError(
                "LatentCodec.encode: expected numbers at most 2^62 from the medians, got "
                f"{float(steps.abs().max()):.3g}. Scale the latents down, and train the tables on "
                "them."
            )
        symbols = steps.long() - self.lows
        last = self.tables.shape[1] - 1
        outside = (symbols < 0) | (symbols >= last)
        coded = table_bytes(
            "LatentCodec", symbols.masked_fill(outside, last).flatten().numpy(), self._each(steps)
        )
        far = steps[outside].long().tolist()
        numbers = count_bytes(*(2 * abs(k) + (k < 0) for k in far))
        return shape_bytes(x) + self._key() + coded + numbers

    def unpack(self, payload: bytes) -> Tensor:
        """Return the numbers of the symbols."""
        reader = Reader("LatentCodec", payload)
        shape = reader.shape()
        refuse_others(reader, self._key())
        empty = torch.zeros(torch.Size(shape[:-1]).numel(), self.width)
        symbols = torch.from_numpy(read_table(reader, self._each(empty))).reshape(empty.shape)
        steps = symbols + self.lows
        outside = symbols == self.tables.shape[1] - 1
        far = [reader.count() for _ in range(int(outside.sum()))]
        signed = [-(k // 2) if k % 2 else k // 2 for k in far]
        steps[outside] = torch.tensor(signed, dtype=torch.int64)
        return (steps + self.medians).float().reshape(shape)

    def _each(self, rows: Tensor) -> np.ndarray:
        return self.tables.expand(len(rows), -1, -1).reshape(-1, self.tables.shape[1]).numpy()

    def _key(self) -> bytes:
        return tensors_key(self.medians, self.lows, self.tables)
