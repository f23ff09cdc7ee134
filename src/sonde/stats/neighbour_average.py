"""Average each patch of an image with its neighbours."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.stats.sequences import example_numbers


def neighbour_average(
    x: Float[Tensor, "row dim"],
    grid: Int[Tensor, "row 2"],
    example: Int[Tensor, "row"],
    window: int = 3,
) -> Float[Tensor, "row dim"]:
    """Return each patch's mean over the square of patches around it.

    Only patches that are there count: at the border, and beside one that was left out, the mean is
    over fewer. A patch that is not finite makes all its neighbours so.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Patches of any number of images, in any order.
    grid : Int[Tensor, "row 2"]
        Line and column of each patch.
    example : Int[Tensor, "row"]
        Which image each patch belongs to.
    window : int, default=3
        Patches along a side of the square; odd. 1 changes nothing.

    Raises
    ------
    InputError
        If the window is even or less than 1, a position is negative, or two patches of an image
        have the same position.

    Examples
    --------
    >>> x, grid = torch.tensor([[0.0], [3.0], [9.0]]), torch.tensor([[0, 0], [0, 1], [0, 2]])
    >>> neighbour_average(x, grid, torch.zeros(3, dtype=torch.int64)).flatten().tolist()
    [1.5, 4.0, 6.0]
    """
    if window < 1 or window % 2 == 0:
        raise InputError(f"neighbour_average: expected an odd window, got {window}.")
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if len(x) == 0 or window == 1:
        return wide.clone()
    reach = window // 2
    grid = grid.cpu()
    if bool((grid < 0).any()):
        raise InputError(
            f"neighbour_average: expected positions from 0 on, got {int(grid.min())}. Patches "
            "without a position, such as class tokens, have no neighbours: leave them out."
        )
    image = example_numbers(example.cpu())
    height, width = ((grid.max(0).values + 1 + 2 * reach).tolist())[:2]
    place = (image * height + grid[:, 0] + reach) * width + grid[:, 1] + reach
    table = torch.full((int(image.max() + 1) * height * width,), -1, dtype=torch.int64)
    table[place] = torch.arange(len(x))
    if not torch.equal(table[place], torch.arange(len(x))):
        raise InputError(
            "neighbour_average: expected each position of an image once, got a position "
            "twice. Pass the example of each row."
        )
    total, count = torch.zeros_like(wide), torch.zeros(len(x), 1, dtype=wide.dtype)
    for line in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            other = table[place + line * width + column]
            here = torch.nonzero(other >= 0).flatten()
            total.index_add_(0, here.to(x.device), wide[other[here].to(x.device)])
            count[here] += 1
    return total / count.to(x.device)
