"""Mix the channels of a map as waves: pairs of channels are complex numbers that are turned."""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.autocast import without_autocast
from sonde.core.errors import InputError
from sonde.layers._attending import wide_type
from sonde.layers.layer import Layer


@final
class WaveChannels(Layer):
    """Add to a map a mixture of its channels, which is zero at the start.

    The map ``x`` is normalised over channels and positions. Two maps of each position give
    ``expand`` times as many channels: amplitudes ``a`` and phases ``t = gelu(T x)``. With ``m`` the
    largest channel of ``x`` at the position, ``f = a t + a_m t_m`` are the waves; pairs
    ``f_2j + i f_2j+1`` are multiplied by learned complex numbers. A 3 x 3 convolution of each
    channel, normalised over channels and positions, GELU, a squeeze gate and a linear map give the
    mixture.

    Cost         2 dim expand products for each amplitude, phase and output; 9 for each wave.
    Assumes      nothing; a change of the largest channel makes the output jump.
    Differs      from SpaRTAN: the 3 x 3 convolution is normalised over its map, not over the batch,
                 and is of each channel by itself, as in the paper's later stages.

    Parameters
    ----------
    dim : int
        Number of channels of the map.
    expand : int, default=2
        Waves for each channel; ``dim expand`` is even.
    waves : bool, default=True
        False leaves out amplitudes, the largest channel and complex numbers: ``f = gelu(T x)``.

    References
    ----------
    spartan2025
    """

    paper: ClassVar[str] = "spartan2025"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4},
        {"dim": 3, "expand": 4},
        {"dim": 4, "waves": False},
    )
    layout: ClassVar[tuple[str, ...]] = ("row dim high wide",)

    def __init__(self, dim: int, expand: int = 2, waves: bool = True) -> None:
        super().__init__()
        width = dim * expand
        if dim < 1 or expand < 1 or (waves and width % 2):
            raise InputError(
                "WaveChannels: expected dim and expand of at least 1, and with waves an even "
                f"dim * expand, to be paired, got {dim} * {expand}."
            )
        self.dim, self.waves, squeezed = dim, waves, max(1, dim // 4)
        self.norm = nn.GroupNorm(1, dim)
        self.phase = nn.Conv2d(dim, width, 1)
        if waves:
            self.amplitude = nn.Conv2d(dim, width, 1)
            self.turn = nn.Parameter(torch.randn(width // 2, 2))
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.squeeze, self.gate = nn.Linear(width, squeezed), nn.Linear(squeezed, width)
        self.out = nn.Conv2d(width, dim, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "row dim high wide"]) -> Float[Tensor, "row dim high wide"]:
        """Return the map plus the mixture of its channels."""
        y = functional.gelu(functional.group_norm(self.near(self.turned(self.norm(x))), 1))
        gate = torch.sigmoid(self.gate(functional.relu(self.squeeze(y.mean((2, 3))))))
        return x + self.out(y * gate[:, :, None, None])

    def turned(self, x: Float[Tensor, "row dim high wide"]) -> Float[Tensor, "row wave high wide"]:
        """Return the waves of a normalised map, multiplied by the complex numbers."""
        phase = functional.gelu(self.phase(x))
        if not self.waves:
            return phase
        kind, wide = phase.dtype, wide_type(phase)
        with without_autocast(x.device):
            wave = self.amplitude(x).to(wide) * phase.to(wide)
            wave = wave + wave.gather(1, x.argmax(1, keepdim=True))
            even, odd = wave[:, ::2], wave[:, 1::2]
            a, b = (p[:, None, None] for p in self.turn.to(wide).unbind(1))
            return torch.stack((a * even - b * odd, b * even + a * odd), 2).flatten(1, 2).to(kind)
