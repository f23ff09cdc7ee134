"""Keep linear and convolution layers close to isometries by a penalty on their weights.

For robustness to small changes of the input, and for deep nets that are hard to train. To see
whether it worked, measure the layer by ``sonde.measure.isometry_error``.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.tap.hooks.sharding import whole_tensor


@final
class Orthogonal(nn.Module):
    """Squared distance of a layer from an isometry: its weight's Gram matrix minus the identity.

    Linear: ``|W W' - 1|_F^2`` or, with more outputs than inputs, ``|W' W - 1|_F^2``. Convolution:
    ``|conv(K, K) - 1_0|_F^2``, the distance of the kernel's correlation with itself, at all shifts
    that are multiples of the stride, from the identity at shift 0. With more outputs than
    ``inputs stride^2`` the constant ``outputs - inputs stride^2`` is subtracted, which the
    transposed product does not have.

    Range        [0, inf); 0 = an isometry, or its transpose. For a convolution with circular
                 padding and ``n x n`` places ``|K K' - 1|_F^2`` is ``n^2 / stride^2`` times this
                 value.
    Cost         O(out^2 in size^4) for a kernel.
    Assumes      a weight (out, in) or (out, in, size, size), one group.
    Batching     none: no rows. A weight that FSDP shards is brought together.

    Parameters
    ----------
    stride : int, default=1
        Stride of the convolution.

    Examples
    --------
    >>> float(Orthogonal()(torch.eye(3)[:2] * 2.0))  # two squares of 4 - 1
    18.0

    References
    ----------
    achour2022existence
    """

    paper: ClassVar[str] = "achour2022existence"
    variants: ClassVar[dict[str, str]] = {"convolutions": "wang2020ocnn"}
    batching: ClassVar[str] = "none"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"stride": 2})

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        check_ranges(self, stride=">= 1")

    @in_float32
    def forward(self, weight: Float[Tensor, "out in *size"]) -> Float[Tensor, ""]:
        """Return the squared distance of one layer's weight from an isometry."""
        weight = whole_tensor(weight)
        if weight.ndim == 2:
            short = weight if len(weight) <= weight.shape[1] else weight.T
            return (short @ short.T - _identity(short)).square().sum()
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
            raise InputError(
                "Orthogonal: expected a weight (out, in) or (out, in, size, size), got shape "
                f"{tuple(weight.shape)}."
            )
        n_out, n_in, size, _ = weight.shape
        shifts = (size - 1) // self.stride
        products = conv2d(weight, weight, stride=self.stride, padding=shifts * self.stride)
        wanted = torch.zeros_like(products)
        wanted[:, :, shifts, shifts] = _identity(weight)
        surplus = max(n_out - n_in * self.stride**2, 0)
        return (products - wanted).square().sum() - surplus


def _identity(weight: Tensor) -> Tensor:
    return torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
