"""Mix the positions of a grid by several kernels that one network computes from coordinates."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import InputError
from sonde.layers._attending import wide_type
from sonde.layers._generating import context_convolved, divided_by_size, places
from sonde.layers.layer import Layer

Branch = Literal["grid", "near", "product"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)


@final
class GeneratedKernels(Layer):
    """Add to a map branches with kernels made of coordinates, joined by a bottleneck.

    A slow network, ``h(c) = sin(A c + b)`` of coordinates ``c`` from -1 to 1, makes a kernel ``W``
    of the grid's size and one of ``kernel`` x ``kernel`` entries. ``grid``: ``(W * x)`` convolved
    with ``x``, for each channel. ``near``: a convolution of each channel whose kernel is
    ``V (h(c) (1 + B p(c)))``, with ``p`` the mean of ``x`` in each cell of a kernel x kernel
    division of the map. ``product``: ``x * sigmoid(W * x * x)``. Each branch is divided by its root
    mean square over positions, a linear map takes all of them to ``dim`` channels, these are
    divided in the same way, go through SiLU, and are added times a scale that is zero at the start.
    Without ``residual`` they are the output, times a scale that is one at the start: a net of such
    blocks has no way around a block.

    Cost         an FFT of twice the grid for ``grid``, kernel^2 products a position for ``near``.
    Assumes      maps of one grid; a loss that holds ``slow_error`` small, if layers should agree.
    Differs      from Terminator: one hidden layer in the slow network, which the branches share;
                 the context of ``near`` is the row's, not the batch's mean; no batch
                 standardisation, gated recursion or channel weights; a residual connection by
                 default, which the paper's blocks do without.

    Parameters
    ----------
    dim : int
        Number of channels of the map.
    grid : (int, int)
        Height and width.
    branches : sequence of {"grid", "near", "product"}, default=("grid", "near", "product")
        Branches that are computed and joined.
    kernel : int, default=3
        Odd.
    coordinate_width : int, default=16
        Hidden units of the slow network.
    residual : bool, default=True
        Add the joined branches to the map; False returns them alone.

    References
    ----------
    zhang2024hyperzzw
    """

    paper: ClassVar[str] = "zhang2024hyperzzw"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "grid": (4, 5)},
        {"dim": 3, "grid": (4, 5), "branches": ("near",), "kernel": 5, "coordinate_width": 3},
        {"dim": 4, "grid": (4, 5), "branches": ("grid", "product")},
        {"dim": 4, "grid": (4, 5), "residual": False},
    )
    layout: ClassVar[tuple[str, ...]] = ("row dim high wide",)

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        branches: Sequence[Branch] = BRANCHES,
        kernel: int = 3,
        coordinate_width: int = 16,
        residual: bool = True,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or not branches or not {*branches} <= {*BRANCHES}:
            raise InputError(
                f"GeneratedKernels: expected an odd kernel and branches of {', '.join(BRANCHES)}, "
                f"got {kernel} and {', '.join(branches) or 'none'}."
            )
        self.dim, self.kernel, self.residual = dim, kernel, residual
        self.insertable = residual
        self.branches: tuple[Branch, ...] = tuple(b for b in BRANCHES if b in branches)
        self.high, self.wide = int(grid[0]), int(grid[1])
        self.first = nn.Linear(2, coordinate_width)
        if self._is_wide:
            self.register_buffer("places", places(self.high, self.wide), persistent=False)
            self.last = nn.Linear(coordinate_width, dim)
        if "near" in self.branches:
            self.register_buffer("near_places", places(kernel, kernel), persistent=False)
            self.context = nn.Linear(dim, coordinate_width)
            self.near_last = nn.Linear(coordinate_width, dim)
        self.join = nn.Conv2d(len(self.branches) * dim, dim, 1)
        self.scale = nn.Parameter(torch.full((dim, 1, 1), float(not residual)))

    @property
    def _is_wide(self) -> bool:
        return {*self.branches} != {"near"}

    def forward(self, x: Float[Tensor, "row dim high wide"]) -> Float[Tensor, "row dim high wide"]:
        """Return the map plus the joined branches, or these alone without ``residual``."""
        joined = self.join(torch.cat([self.branch(name, x) for name in self.branches], 1))
        brought = self.scale * functional.silu(divided_by_size(joined))
        return x + brought if self.residual else brought

    def branch(
        self, name: Branch, x: Float[Tensor, "row dim high wide"]
    ) -> Float[Tensor, "row dim high wide"]:
        """Return a branch, divided by its root mean square over positions."""
        wide = x.to(wide_type(x))
        if name == "grid":
            mixed = context_convolved(self.generated(), wide)
        elif name == "near":
            cut = functional.unfold(wide, self.kernel, padding=self.kernel // 2)
            cut = cut.unflatten(1, (self.dim, -1))
            mixed = torch.einsum("rck,rckp->rcp", self.near(x).to(wide).flatten(2), cut)
            mixed = mixed.reshape(x.shape)
        else:
            mixed = wide * torch.sigmoid(self.generated().to(wide) * wide.square())
        return divided_by_size(mixed).to(x.dtype)

    def generated(self) -> Float[Tensor, "dim high wide"]:
        """Return the kernel of the grid's size, made of coordinates alone."""
        if not self._is_wide:
            raise InputError(
                "GeneratedKernels.generated: expected the branch 'grid' or 'product', got 'near' "
                "alone, which has no kernel of the grid's size."
            )
        return self.last(self._hidden("places")).movedim(-1, 0)

    def near(self, x: Float[Tensor, "row dim high wide"]) -> Float[Tensor, "row dim kernel kernel"]:
        """Return the small kernel of each row, made of coordinates and means of the map."""
        cells = functional.adaptive_avg_pool2d(x, self.kernel)
        hidden = self._hidden("near_places") * (1.0 + self.context(cells.movedim(1, -1)))
        return self.near_last(hidden).movedim(-1, 1)

    def slow_error(self, deeper: "GeneratedKernels") -> Float[Tensor, ""]:
        """Return the mean squared difference of the kernels of the grid's size of two layers.

        Trained beside the loss of the net, it reaches the slow networks directly. With more layers
        the paper adds it over all pairs.

        Parameters
        ----------
        deeper : GeneratedKernels
            For the same grid; as wide as this layer, or a multiple, and this kernel is repeated.

        Raises
        ------
        InputError
            If grids or widths do not fit, or a layer has no kernel of the grid's size.
        """
        kernels, other = self.generated(), deeper.generated()
        if kernels.shape[1:] != other.shape[1:] or len(other) % len(kernels):
            raise InputError(
                f"GeneratedKernels.slow_error: expected a layer for {self.high} x {self.wide} "
                f"positions with a multiple of {self.dim} channels, got {deeper.high} x "
                f"{deeper.wide} with {deeper.dim}."
            )
        return (kernels.repeat(len(other) // len(kernels), 1, 1) - other).square().mean()

    def _hidden(self, name: str) -> Tensor:
        """Return the slow network's hidden units at each coordinate."""
        return torch.sin(self.first(self.get_buffer(name).to(self.first.weight.dtype)))
