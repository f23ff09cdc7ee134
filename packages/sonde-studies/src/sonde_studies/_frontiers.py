"""Cells with arrows to several others, some of them goals, and questions about goals ahead."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde_studies._gpt2 import gpt2

CELLS, ARROWS, GOALS, DIM, FIT, HELD = 6, 2, 2, 48, 40_000, 1_000
MARK = CELLS * CELLS
CELL = MARK + 2 * CELLS
NO, YES = CELL + CELLS, CELL + CELLS + 1
TOKENS = CELLS * ARROWS + CELLS + 1


def decoder() -> nn.Module:
    """Return an untrained GPT-2 of one block with a token per arrow, mark, cell and answer."""
    return gpt2(YES + 1, TOKENS + 1, DIM, layers=1, heads=4, initializer_range=0.1)


def frontiers(
    seed: int,
) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row arrow"], Bool[Tensor, "row arrow"]]:
    """Return questions whether a goal is one arrow ahead, the next cells, and which are goals.

    The tokens are one for each arrow, in random order, one for each cell that says whether it is a
    goal, and the cell of the question. The next cells come in random order.
    """
    draw = torch.Generator().manual_seed(seed)
    n, here = FIT + HELD, torch.arange(CELLS)[:, None]
    ahead = 1 + torch.rand(n, CELLS, CELLS - 1, generator=draw).argsort(2)[:, :, :ARROWS]
    to = (here + ahead) % CELLS
    arrows = (here * CELLS + to).flatten(1)
    order = torch.rand(arrows.shape, generator=draw).argsort(1)
    goal = torch.rand(n, CELLS, generator=draw).argsort(1) < GOALS
    marks = MARK + 2 * torch.arange(CELLS) + goal
    asked = torch.randint(CELLS, (n, 1), generator=draw)
    cells = to[torch.arange(n), asked[:, 0]]
    return (
        torch.cat([arrows.gather(1, order), marks, CELL + asked], 1),
        cells,
        goal.gather(1, cells),
    )


def best_with_one(
    ids: Int[Tensor, "row token"], goal: Bool[Tensor, "row arrow"]
) -> Float[Tensor, "row"]:
    """Return the accuracy of the best answer from all marks and the first of two cells ahead.

    That cell's mark, the mark of the question's cell and the number of goals leave the other cell
    a goal with a probability that counts the goals among the remaining cells.
    """
    marks, asked = ids[:, -1 - CELLS : -1], ids[:, -1:] - CELL
    own = (marks.gather(1, asked)[:, 0] - MARK) % 2
    chance = (GOALS - own - goal[:, 0].long()) / (CELLS - 2)
    return torch.where(goal[:, 0], 1.0, torch.maximum(chance, 1 - chance))
