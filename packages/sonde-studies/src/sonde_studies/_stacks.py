"""Stacks of slices: one digit at eight sizes, whose order is the shape of the stack."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

NOISE = 0.4
SIZES = torch.linspace(0.4, 1.1, 8)
SHAPES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0],
                       [0, 2, 4, 6, 7, 5, 3, 1], [7, 5, 3, 1, 0, 2, 4, 6]])  # fmt: skip
"""Orders of the sizes: growing, shrinking, a barrel and an hourglass."""


def digit_stacks(
    x: Float[Tensor, "row pixel"], shape: Int[Tensor, "row"], draw: torch.Generator
) -> Float[Tensor, "row slice pixel"]:
    """Return each digit at eight sizes, in the order of its shape, with noise by a generator."""
    sized = torch.stack([_at_size(x, float(size)) for size in SIZES], 1)
    stacks = in_order(sized, SHAPES[shape])
    return stacks + NOISE * torch.randn(stacks.shape, generator=draw)


def in_order(
    slices: Float[Tensor, "row slice pixel"], order: Int[Tensor, "row slice"]
) -> Float[Tensor, "row slice pixel"]:
    """Return slices in the order of each row."""
    return slices.gather(1, order[..., None].expand_as(slices))


def other_view(stacks: Float[Tensor, "row slice pixel"]) -> Float[Tensor, "row slice pixel"]:
    """Return stacks with other brightness, shifted by up to a pixel, with noise.

    All is drawn by the global generator.
    """
    light = 0.7 + 0.6 * torch.rand(len(stacks), 1, 1)
    down, right = torch.randint(-1, 2, (2,)).tolist()
    moved = stacks.unflatten(2, (8, 8)).roll((down, right), (2, 3)).flatten(2)
    return light * moved + 0.1 * torch.randn(stacks.shape)


def _at_size(x: Tensor, size: float) -> Tensor:
    """Return digits (row, pixel) scaled about their centre."""
    turn = torch.tensor([[1 / size, 0.0, 0.0], [0.0, 1 / size, 0.0]]).expand(len(x), 2, 3)
    grid = affine_grid(turn, [len(x), 1, 8, 8], align_corners=False)
    return grid_sample(x.reshape(-1, 1, 8, 8), grid, align_corners=False).flatten(1)
