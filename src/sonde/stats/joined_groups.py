"""Groups of rows that are joined because they contain near copies of each other."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.stats.neighbours import nearest

FAR, MIDDLE, FARTHER = 5, 10, 20
HALFWAY = math.log(2)
"""The tenth of twenty neighbours is at half of the volume that the twentieth encloses."""


def joined_groups(
    x: Float[Tensor, "row dim"],
    group: Int[Tensor, "row"],
    limit: float = 0.25,
    chance: float = 0.01,
) -> Int[Tensor, "row"]:
    """Return the groups, with those that contain near copies of each other joined to one.

    A row may have up to four near copies. The dimension of the rows is that at which a uniform
    density gives the median distances to the tenth and the twentieth neighbour: near copies of
    all rows do not change it.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows in which near copies are looked for.
    group : Int[Tensor, "row"]
        Group of each row.
    limit : float, default=0.25
        Largest ratio of the distances to a near copy and to the fifth neighbour.
    chance : float, default=0.01
        Number of rows with a near copy that would be expected in a smooth density.
    """
    if len(group.unique()) <= FARTHER:
        return group
    distance, index = nearest(x, x, FARTHER, group=group, group2=group)
    middle, far = distance[:, MIDDLE - 1], distance[:, FARTHER - 1]
    usable = torch.isfinite(far) & (middle > 0)
    spread = float((far[usable] / middle[usable]).log().median()) if bool(usable.any()) else 0.0
    if spread <= 0:
        return group
    dim = max(0.1, HALFWAY / spread)
    eps = min(limit, (chance / (4 * len(x))) ** (1 / dim))
    is_near = distance[:, : FAR - 1] < eps * distance[:, FAR - 1 : FAR]
    joined = group.clone()
    for row, near in is_near.nonzero().tolist():
        joined[joined == joined[row]] = int(joined[index[row, near]])
    return joined
