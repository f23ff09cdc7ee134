"""Maps of one level of a pyramid at the size of another."""

from torch import Tensor
from torch.nn import functional


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps of another size: maxima if it is smaller, else the nearest entries."""
    if x.shape[2] > size[0] or x.shape[3] > size[1]:
        return (
            functional.adaptive_max_pool2d(x, size) if x.shape[1] else x.new_zeros(len(x), 0, *size)
        )
    return functional.interpolate(x, size) if x.shape[1] else x.new_zeros(len(x), 0, *size)
