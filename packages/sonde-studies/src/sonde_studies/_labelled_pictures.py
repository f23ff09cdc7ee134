"""Digits under a small mark with several yes-or-no labels each, as patches and as views."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

SIDE, PATCH, DIGITS = 8, 2, 10
MARKS = torch.tensor([
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
    [[1, 1, 1], [1, 0, 1], [1, 1, 1]],
    [[0, 1, 0], [1, 1, 1], [0, 1, 0]],
]).float()  # fmt: skip
"""A saltire, a frame and a cross."""
COMMON = 0.6
"""Fraction of the digits that are not bold, and of those that are not slanted."""


class Pictures(NamedTuple):
    """Pictures, their digit, and facts, each 0 or 1.

    Facts: whether the digit's number is below five, and odd; each mark; the quarter of the mark;
    bold and slanted.
    """

    picture: Float[Tensor, "picture line column"]
    facts: Float[Tensor, "picture fact"]
    digit: Int[Tensor, "picture"]


def labelled_pictures(
    x: Float[Tensor, "digit pixel"], label: Int[Tensor, "digit"], seed: int, n: int
) -> Pictures:
    """Return digits with a small mark laid over each at a random place.

    Parameters
    ----------
    x : Float[Tensor, "digit pixel"]
        Images of 8 x 8 pixels to choose from.
    label : Int[Tensor, "digit"]
        From 0 to 9.
    seed, n : int
    """
    draw = torch.Generator().manual_seed(seed)
    row = torch.randint(len(x), (n,), generator=draw)
    mark = torch.randint(len(MARKS), (n,), generator=draw)
    side = MARKS.shape[1]
    corner = torch.randint(SIDE - side + 1, (2, n, 1, 1), generator=draw)
    line, column = torch.arange(side)[:, None] + corner[0], torch.arange(side) + corner[1]
    picture = x[row].reshape(n, SIDE, SIDE).clone()
    picture[torch.arange(n)[:, None, None], line, column] = MARKS[mark]
    quarter = (2 * (corner[0] > 2) + (corner[1] > 2)).flatten()
    at = torch.arange(SIDE) - (SIDE - 1) / 2
    ink, slant = x.sum(1), (x.reshape(-1, SIDE, SIDE) * at * at[:, None]).sum((1, 2))
    shape = [(value > value.quantile(COMMON))[row, None] for value in (ink, slant)]
    kind = label[row, None]
    marks = [one_hot(mark, len(MARKS)), one_hot(quarter, 4)]
    facts = torch.cat([kind < DIGITS // 2, kind % 2, *marks, *shape], 1)
    return Pictures(picture, facts.float(), label[row])


def patches(picture: Float[Tensor, "picture line column"]) -> Float[Tensor, "picture patch pixel"]:
    """Return the squares of 2 x 2 pixels, line by line."""
    n = SIDE // PATCH
    return picture.reshape(-1, n, PATCH, n, PATCH).transpose(2, 3).reshape(-1, n * n, PATCH**2)


def changed(
    picture: Float[Tensor, "picture line column"], noise: float
) -> Float[Tensor, "picture line column"]:
    """Return pictures moved by up to a pixel, of other brightness and with noise.

    The global generator draws the changes.
    """
    moved = picture.roll(torch.randint(-1, 2, (2,)).tolist(), (1, 2))
    light = 0.6 + 0.8 * torch.rand(len(picture), 1, 1)
    return light * moved + noise * torch.randn(picture.shape)
