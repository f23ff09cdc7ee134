"""Deviation of a linear or convolution layer from keeping lengths, from its weight alone.

For layers under the penalty ``sonde.train.Orthogonal``. A convolution has circular padding here,
so that its singular values come exactly from a Fourier transform of the kernel.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.result import Direction, Result
from sonde.core.tensors import as_tensor


@final
@dataclass(frozen=True, kw_only=True)
class IsometryErrorResult(Result):
    """Largest distance of a singular value from 1; ``smallest`` and ``largest`` are the extremes.

    ``singular`` holds all of them, of each frequency for a convolution.
    """

    direction: Direction = "lower"
    smallest: float
    largest: float
    singular: Float[Tensor, "*frequency value"]


def isometry_error(weight: Any, side: int | None = None, stride: int = 1) -> IsometryErrorResult:
    """Return the largest distance of a layer's singular values from 1.

    Range        [0, inf); 0 = all lengths are kept, of inputs or, for a wide input, of gradients.
    Cost         linear: a singular value decomposition; convolution: one for each of
                 ``(side / stride)^2`` frequencies, of out x (in stride^2).
    Assumes      circular padding and one group; the values of zero padding differ at the border.

    Parameters
    ----------
    weight : array (out, in) or (out, in, size, size)
        Weight of a linear layer or of a two-dimensional convolution.
    side : int, optional
        Width and height of the layer's input, a multiple of ``stride``; needed for a convolution.
    stride : int, default=1
        Step of the convolution along both axes.

    Raises
    ------
    ShapeError
        If the weight is of another shape.
    InputError
        If the side is missing, smaller than the kernel, or no multiple of the stride.

    Examples
    --------
    >>> found = isometry_error(torch.diag(torch.tensor([1.0, 0.5, 1.25])))
    >>> found.value, found.smallest, found.largest
    (0.5, 0.5, 1.25)

    References
    ----------
    sedghi2019singular
    """
    kernel = as_tensor("isometry_error", weight, "a weight", ShapeError).detach().double()
    if kernel.ndim == 2:
        singular = torch.linalg.svdvals(kernel)
    elif kernel.ndim == 4:
        if side is None or side < max(kernel.shape[2:]) or stride < 1 or side % stride:
            raise InputError(
                "isometry_error: expected side, the width of the layer's input, at least "
                f"{max(kernel.shape[2:])} and a multiple of stride={stride}, got {side}."
            )
        singular = torch.linalg.svdvals(_frequencies(kernel, side, stride))
    else:
        raise ShapeError(
            "isometry_error: expected a weight (out, in) or (out, in, size, size), got shape "
            f"{tuple(kernel.shape)}."
        )
    finite = bool(torch.isfinite(singular).all())
    low, high = float(singular.min()), float(singular.max())
    return IsometryErrorResult(
        value=max(abs(low - 1), abs(high - 1)),
        n=singular.numel(),
        range=(0.0, math.inf),
        flags=() if finite else ("nonfinite",),
        conventions={"padding": "none" if kernel.ndim == 2 else "circular", "stride": stride},
        smallest=low,
        largest=high,
        singular=singular,
    )


def _frequencies(kernel: Tensor, side: int, stride: int) -> Tensor:
    """Return each frequency's matrix: out x (in stride^2), up to phases.

    A stride folds ``stride^2`` frequencies of the input into each frequency of the output.
    """
    whole = torch.fft.fft2(kernel, s=(side, side)) / stride
    rows = "o i (a f) (b g) -> f g o (i a b)"
    return rearrange(whole, rows, a=stride, b=stride)
