"""Fill the unknown positions of a map from the known ones around them, at several scales."""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import InputError, ShapeError
from sonde.layers.layer import Layer


@final
class PartialConv(Layer):
    """Add to a map what is read from its is_known positions at several scales, at the start zero.

    For each kernel a stream of ``depth`` convolutions reads known positions alone:
    ``y = W (x m) k^2 / n + b``, with ``m`` the known positions and ``n`` their number in the
    window of ``k x k``; where ``n`` is 0, ``y`` is 0, elsewhere the position is known to the next
    convolution. ReLU stands between the convolutions. A linear map takes the streams side by side,
    so that wide kernels fill the middle of a hole and narrow ones its edge.

    Cost         dim^2 k^2 depth products a position for each kernel.
    Assumes      values at unknown positions that may be anything: they are not read.
    Differs      from the paper: a residual connection; the same width in all streams.

    Parameters
    ----------
    dim : int
        Number of channels of the map.
    kernels : sequence of int, default=(3, 5, 7)
        Odd size of each stream's window.
    depth : int, default=2
        Convolutions of each stream.

    References
    ----------
    liu2020medfe
    """

    paper: ClassVar[str] = "liu2020medfe"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4},
        {"dim": 3, "kernels": (3,), "depth": 1},
    )
    layout: ClassVar[tuple[str, ...]] = ("row dim high wide",)

    def __init__(self, dim: int, kernels: tuple[int, ...] = (3, 5, 7), depth: int = 2) -> None:
        super().__init__()
        if dim < 1 or depth < 1 or not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
            raise InputError(
                "PartialConv: expected dim and depth of at least 1 and odd kernels, got "
                f"{dim}, {depth} and {kernels}."
            )
        self.dim = dim
        self.streams = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2) for _ in range(depth))
            for k in kernels
        )
        self.out = nn.Conv2d(dim * len(kernels), dim, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        x: Float[Tensor, "row dim high wide"],
        is_known: Bool[Tensor, "row one high wide"] | None = None,
    ) -> Float[Tensor, "row dim high wide"]:
        """Return the map plus what the streams read.

        Parameters
        ----------
        x : Float[Tensor, "row dim high wide"]
        is_known : Bool[Tensor, "row one high wide"] or None, default=None
            Positions whose values are read; all, where none are given.

        Raises
        ------
        ShapeError
            If ``is_known`` has another shape than one channel of the map.
        """
        if is_known is None:
            is_known = x.new_ones(len(x), 1, *x.shape[2:], dtype=torch.bool)
        elif is_known.shape != (len(x), 1, *x.shape[2:]):
            raise ShapeError(
                "PartialConv: expected is_known as (row, 1, high, wide) of the map "
                f"{tuple(x.shape)}, got {tuple(is_known.shape)}."
            )
        return x + self.out(
            torch.cat([self.filled(x, is_known, i) for i in range(self.n_scales)], 1)
        )

    @property
    def n_scales(self) -> int:
        """Number of streams."""
        return len(self.streams)

    def filled(
        self,
        x: Float[Tensor, "row dim high wide"],
        is_known: Bool[Tensor, "row one high wide"],
        at: int,
    ) -> Float[Tensor, "row dim high wide"]:
        """Return what the stream of one kernel reads.

        Parameters
        ----------
        x : Float[Tensor, "row dim high wide"]
        is_known : Bool[Tensor, "row one high wide"]
        at : int
            Index of the kernel.
        """
        x = torch.where(is_known, x, 0)
        for i, conv in enumerate(self.streams[at]):  # pyright: ignore
            kernel = conv.kernel_size[0]
            window = x.new_ones(1, 1, kernel, kernel)
            n = functional.conv2d(is_known.to(x.dtype), window, padding=kernel // 2)
            is_known = n > 0
            y = functional.conv2d(x, conv.weight, padding=kernel // 2)
            y = y * (kernel**2 / n.clamp(min=1)) + conv.bias[:, None, None]
            x = torch.where(is_known, y if i + 1 == len(self.streams[at]) else y.relu(), 0)  # pyright: ignore
        return x
