"""Mix the positions of a grid; a parameter selects the positions that share weights."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import InputError
from sonde.layers._generating import context_convolved, divided_by_size, places
from sonde.layers.layer import Layer

Weights = Literal["full", "local", "shared", "axis", "dilated", "generated"]
FIXED = ("full", "local", "generated")


@final
class GridMixer(Layer):
    """Add to a map a mixture of its positions, which is zero at the start.

    ``full``: any position to any, for each channel. ``local``: own weights for the ``kernel``
    neighbourhood of each position. ``shared``: a depthwise convolution. ``axis``: networks along
    columns, then along rows, over ``raft`` channels at once. ``dilated``: on half as many channels,
    a 3 x 3 and a wider dilated branch, each times a squeeze gate. ``generated``: a small sine
    network makes a kernel ``W`` from coordinates; the map is convolved with ``W * x``, by FFT, and
    divided by its root mean square.

    Cost         numbers for each channel on 14 x 14: 38,416 full, 1,764 local, 9 shared.
    Assumes      ``full local axis generated`` are made for one grid; ``axis`` resamples other
                 sizes.
    Differs      from HyperZZW: the slow network is a sine network of one hidden layer; a residual
                 connection; one branch (several, and their bottleneck: ``GeneratedKernels``). From
                 SpaRTAN: no normalisation inside; its channels are mixed by ``WaveChannels``.

    Parameters
    ----------
    dim : int
        Number of channels of the map.
    weights : {"full", "local", "shared", "axis", "dilated", "generated"}, default="shared"
        How the positions are mixed.
    grid : (int, int), optional
        Height and width; ``shared`` and ``dilated`` do without it.
    kernel : int, default=3
        Odd.
    raft : int, default=1
        Channels that ``axis`` mixes; divides ``dim``.
    hidden : bool, default=True
        ``axis`` with a hidden layer twice as wide and a normalisation; False is ``A X B'``.
    coordinate_width : int, default=16
        Width of the sine network of ``generated``.

    References
    ----------
    lahoti2024dsd
    """

    paper: ClassVar[str] = "lahoti2024dsd"
    variants: ClassVar[Mapping[str, str]] = {
        "weights='local', grid=(4, 5)": "lahoti2024dsd",
        "weights='axis', grid=(4, 5)": "tatsunami2021raftmlp",
        "weights='dilated'": "spartan2025",
        "weights='generated', grid=(4, 5)": "zhang2024hyperzzw",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4},
        {"dim": 4, "weights": "full", "grid": (4, 5)},
        {"dim": 4, "weights": "local", "grid": (4, 5)},
        {"dim": 4, "weights": "axis", "grid": (4, 5), "raft": 2},
        {"dim": 4, "weights": "axis", "grid": (4, 5), "hidden": False},
        {"dim": 4, "weights": "dilated"},
        {"dim": 4, "weights": "generated", "grid": (4, 5)},
    )
    layout: ClassVar[tuple[str, ...]] = ("row dim high wide",)

    def __init__(
        self,
        dim: int,
        weights: Weights = "shared",
        grid: tuple[int, int] | None = None,
        kernel: int = 3,
        raft: int = 1,
        hidden: bool = True,
        coordinate_width: int = 16,
    ) -> None:
        super().__init__()
        if grid is None and weights not in ("shared", "dilated"):
            raise InputError(f"GridMixer: expected grid=(height, width) for {weights!r}, got none.")
        if weights == "dilated" and dim < 2:
            raise InputError(f"GridMixer: expected dim of at least 2 for 'dilated', got {dim}.")
        if kernel % 2 == 0 or dim % raft:
            raise InputError(
                f"GridMixer: expected an odd kernel and a raft that divides dim={dim}, got "
                f"{kernel} and {raft}."
            )
        self.dim, self.weights, self.kernel, self.raft, self.hidden = (
            dim,
            weights,
            kernel,
            raft,
            hidden,
        )
        self.grid = (int(grid[0]), int(grid[1])) if grid else (0, 0)
        if weights in FIXED:
            self.high, self.wide = self.grid
        if weights == "shared":
            self.symmetry = "translation"
        if weights in ("full", "local", "shared"):
            n = self.grid[0] * self.grid[1]
            shape = {"full": (dim, n, n), "local": (dim, n, kernel**2)}.get(weights)
            self.map = nn.Parameter(torch.zeros(shape or (dim, 1, kernel, kernel)))
        elif weights == "axis":
            self._make_axis()
        elif weights == "dilated":
            self._make_dilated()
        else:
            self._make_generated(coordinate_width)

    def _make_axis(self) -> None:
        sizes = [self.raft * side for side in self.grid]
        if self.hidden:
            nets = [
                nn.Sequential(nn.Linear(s, 2 * s), nn.GELU(), nn.Linear(2 * s, s)) for s in sizes
            ]
            for net in nets:
                nn.init.zeros_(net[2].get_parameter("weight"))
                nn.init.zeros_(net[2].get_parameter("bias"))
            self.norms = nn.ModuleList([nn.LayerNorm(self.dim) for _ in sizes])
            self.lines = nn.ModuleList(nets)
        else:
            self.lines = nn.ModuleList([nn.Linear(s, s, bias=False) for s in sizes])
            nn.init.zeros_(self.lines[1].get_parameter("weight"))

    def _make_dilated(self) -> None:
        half = self.dim // 2
        self.gamma = nn.Parameter(torch.full((self.dim, 1, 1), 1e-5))
        self.inner = nn.Conv2d(self.dim, half, 1)
        self.near = nn.Conv2d(half, half, 3, padding=1)
        far = [nn.Conv2d(half, half, 3, padding=2, dilation=2) for _ in range(2)]
        self.far = nn.Sequential(*far)
        self.squeeze = nn.ModuleList([nn.Linear(half, half) for _ in range(2)])
        self.out = nn.Conv2d(2 * half, self.dim, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def _make_generated(self, width: int) -> None:
        self.register_buffer("places", places(*self.grid), persistent=False)
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, self.dim)
        self.scale = nn.Parameter(torch.zeros(self.dim, 1, 1))

    def forward(self, x: Float[Tensor, "row dim high wide"]) -> Float[Tensor, "row dim high wide"]:
        """Return the map plus the mixture of its positions."""
        if self.weights == "full":
            mixed = torch.einsum("cqp,rcp->rcq", self.map, x.flatten(2))
            return x + mixed.reshape(x.shape)
        if self.weights == "local":
            near = functional.unfold(x, self.kernel, padding=self.kernel // 2)
            near = near.unflatten(1, (self.dim, -1))
            return x + torch.einsum("cpk,rckp->rcp", self.map, near).reshape(x.shape)
        if self.weights == "shared":
            return x + functional.conv2d(x, self.map, padding=self.kernel // 2, groups=self.dim)
        if self.weights == "axis":
            return self._along_axes(x)
        if self.weights == "dilated":
            return x + self._dilated(x)
        return x + self.scale * divided_by_size(self.convolved(x)).to(x.dtype)

    def generated(self) -> Float[Tensor, "dim high wide"]:
        """Return the kernel that the sine network computes from the coordinates."""
        places = self.get_buffer("places").to(self.first.weight.dtype)
        return self.last(torch.sin(self.first(places))).movedim(-1, 0)

    def convolved(self, x: Float[Tensor, "row dim high wide"]) -> Tensor:
        """Return ``(W * x)`` convolved with ``x``, the kernel's middle at (0, 0).

        States of half types give float32: the FFT has none, and products of states overflow.
        """
        return context_convolved(self.generated(), x)

    def _along_axes(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        y = x if size == self.grid else functional.interpolate(x, self.grid, mode="bicubic")
        before = y
        if not self.hidden:
            y = y + self._lined(self._lined(y, 0), 1)
        else:
            for axis, norm in enumerate(self.norms):
                y = y + self._lined(norm(y.movedim(1, -1)).movedim(-1, 1), axis)
        if size == self.grid:
            return y
        return x + functional.interpolate(y - before, size, mode="bicubic")

    def _lined(self, x: Tensor, axis: int) -> Tensor:
        """Return the map after a network along height (0) or width (1), over rafts of channels."""
        y = x.unflatten(1, (-1, self.raft))
        y = y.transpose(3, 4) if axis == 0 else y  # the axis to be mixed stands last
        y = y.transpose(2, 3)
        y = self.lines[axis](y.flatten(3)).unflatten(3, (self.raft, -1)).transpose(2, 3)
        return (y.transpose(3, 4) if axis == 0 else y).reshape(x.shape)

    def _dilated(self, x: Tensor) -> Tensor:
        y = self.inner(x + self.gamma * (x - x.mean((2, 3), keepdim=True)))
        parts: list[Tensor] = []
        for branch, squeeze in zip((self.near, self.far), self.squeeze, strict=True):
            part = branch(y)
            parts.append(part * torch.sigmoid(squeeze(part.mean((2, 3))))[:, :, None, None])
        return self.out(torch.cat(parts, 1))
