"""Choose an option for each of several items, at the least cost within a size budget."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError

CELLS = 20_000
"""Sizes are counted in this many parts of a budget, rounded up."""


def allocate(
    costs: Float[Tensor, "n choice"], sizes: Int[Tensor, "n choice"], budget: int
) -> list[int]:
    """Return an option for each item, with the least total cost within a budget.

    Exact by dynamic programming if the budget exceeds the smallest choices by at most 20,000 units.
    Above that, the excess is cut into 20,000 parts and sizes are rounded up to whole parts, so that
    the sum stays within the budget. Of equal choices the first is taken.

    Parameters
    ----------
    costs : Float[Tensor, "n choice"]
        Cost of each option of each item.
    sizes : Int[Tensor, "n choice"]
        Size of each option of each item.
    budget : int
        Largest total size.

    Raises
    ------
    InputError
        If the smallest choices together exceed the budget; it names their size.

    Examples
    --------
    >>> allocate(torch.tensor([[9.0, 1.0], [3.0, 2.0]]), torch.tensor([[1, 3], [1, 3]]), 4)
    [1, 0]
    """
    if not bool(torch.isfinite(costs).all()):
        raise InputError("allocate: expected finite costs, got NaN or infinity.")
    least = int(sizes.amin(1).sum())
    if least > budget:
        raise InputError(
            f"allocate: expected a budget of at least {least:,}, the total of the smallest "
            f"choices, got {budget:,}."
        )
    more = (sizes - sizes.amin(1, keepdim=True)).cpu().numpy()
    # divided by their common divisor, many budgets are small enough to be exact
    common = int(np.gcd.reduce(more.reshape(-1))) or 1
    room = (budget - least) // common
    unit = max(1, -(-room // CELLS))
    cells = -(-(more // common) // unit)
    return _programme(costs.double().cpu().numpy(), cells, room // unit)


def _programme(costs: np.ndarray, cells: np.ndarray, room: int) -> list[int]:
    best = np.zeros(room + 1)
    taken = np.empty((len(costs), room + 1), np.int16)
    for i, (cost, size) in enumerate(zip(costs, cells, strict=True)):
        with_item = np.full((len(cost), room + 1), np.inf)
        for k, (c, s) in enumerate(zip(cost, size, strict=True)):
            if s <= room:
                with_item[k, s:] = best[: room + 1 - s] + c
        taken[i] = with_item.argmin(0)
        best = with_item.min(0)
    left, chosen = room, list[int]()
    for i in reversed(range(len(costs))):
        k = int(taken[i, left])
        chosen.append(k)
        left -= int(cells[i, k])
    return chosen[::-1]
