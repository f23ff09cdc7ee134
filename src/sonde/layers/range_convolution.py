"""Convolution over pixels sorted by their values, so that neighbours have similar values."""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers.layer import Layer


@final
class RangeConvolution(Layer):
    """Add to a map a convolution over its sorted values, which is zero at the start.

    The first channels, a fraction ``sorted_part``, are sorted in ascending order along columns,
    then along rows, each by its own values. A map over channels and a depthwise convolution take
    them beside the others, which stay in place. The output of a sorted channel returns to the
    positions of its values.

    Cost         dim^2 + dim kernel^2 + 2 dim numbers; sorts of every column and row.
    Assumes      values that say what belongs together, such as brightness under haze or snow.
    Differs      from the paper: the output returns to its positions right behind the convolution,
                 not behind an attention over the sorted map; a residual connection.

    Parameters
    ----------
    dim : int
        Number of channels of the map.
    kernel : int, default=3
        Odd.
    sorted_part : float, default=0.5
        From 0, an ordinary convolution of equal size, to 1; rounded to whole channels.

    References
    ----------
    sun2024histoformer
    """

    paper: ClassVar[str] = "sun2024histoformer"
    variants: ClassVar[Mapping[str, str]] = {}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4},
        {"dim": 4, "kernel": 5, "sorted_part": 1.0},
        {"dim": 4, "sorted_part": 0.0},
    )
    layout: ClassVar[tuple[str, ...]] = ("row dim high wide",)

    def __init__(self, dim: int, kernel: int = 3, sorted_part: float = 0.5) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0 or not 0.0 <= sorted_part <= 1.0:
            raise InputError(
                "RangeConvolution: expected an odd kernel and sorted_part in [0, 1], got "
                f"{kernel} and {sorted_part}."
            )
        self.dim, self.n_sorted = dim, round(sorted_part * dim)
        self.mix = nn.Conv2d(dim, dim, 1)
        self.near = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        nn.init.zeros_(self.near.weight)
        if self.near.bias is not None:
            nn.init.zeros_(self.near.bias)
        self.symmetry = "none" if self.n_sorted else "translation"
        self.bfloat16_safe = not self.n_sorted  # rounded values may change their order

    def forward(
        self,
        x: Float[Tensor, "row dim high wide"],
        by: Float[Tensor, "row sorted high wide"] | None = None,
    ) -> Float[Tensor, "row dim high wide"]:
        """Return the map plus the convolution.

        Parameters
        ----------
        x : Float[Tensor, "row dim high wide"]
        by : Float[Tensor, "row sorted high wide"], optional
            Values that give the order of the ``n_sorted`` sorted channels; by default their own.

        Raises
        ------
        ShapeError
            If ``by`` has not the shape of the sorted channels.
        """
        front, rest = x[:, : self.n_sorted], x[:, self.n_sorted :]
        if by is not None and by.shape != front.shape:
            raise ShapeError(
                f"RangeConvolution.forward: expected by of shape {tuple(front.shape)}, like the "
                f"sorted channels, got {tuple(by.shape)}."
            )
        order = (front if by is None else by).detach()
        order, column = order.sort(dim=2, stable=True)
        row = order.sort(dim=3, stable=True).indices
        front = front.gather(2, column).gather(3, row)
        y = self.near(self.mix(torch.cat([front, rest], 1)))
        mixed, rest = y[:, : self.n_sorted], y[:, self.n_sorted :]
        mixed = torch.zeros_like(mixed).scatter(3, row, mixed)
        mixed = torch.zeros_like(mixed).scatter(2, column, mixed)
        return x + torch.cat([mixed, rest], 1)
