"""Cells with an arrow each, questions about where arrows lead, and a decoder of one block."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde_studies._gpt2 import gpt2
from sonde_studies.arms import note

CELLS, DIM, FIT, HELD = 8, 20, 40_000, 1_000
PAUSE = CELLS * CELLS + CELLS
RATE, BATCH, EVERY = 2e-3, 128, 10


def decoder() -> nn.Module:
    """Return an untrained narrow GPT-2 with a token per arrow, per question and a pause token."""
    return gpt2(PAUSE + 1, CELLS + 4, DIM, layers=1, heads=2, initializer_range=0.1)


def arrows(
    length: int, seed: int, pause: bool = False
) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row cell"]]:
    """Return questions about where arrows lead, and the cells on the way.

    Parameters
    ----------
    length : int
        Number of arrows to follow; ``cell`` is as long, and its last one is the answer.
    seed : int
    pause : bool, default=False
        Whether a pause token follows the question.

    Returns
    -------
    tokens : one for each arrow, in random order, and then the question.
    cells : from 0 to ``CELLS - 1``.
    """
    draw = torch.Generator().manual_seed(seed)
    n = FIT + HELD
    to = torch.rand(n, CELLS, generator=draw).argsort(1)
    order = torch.rand(n, CELLS, generator=draw).argsort(1)
    asked = torch.randint(CELLS, (n, 1), generator=draw)
    way = [asked]
    for _ in range(length):
        way.append(to.gather(1, way[-1]))
    tokens = [order * CELLS + to.gather(1, order), CELLS * CELLS + asked]
    tokens += [torch.full((n, 1), PAUSE)] if pause else []
    return torch.cat(tokens, 1), torch.cat(way[1:], 1)


@torch.enable_grad()
def imitate(
    model: Any,
    ids: Int[Tensor, "row token"],
    way: Int[Tensor, "row cell"],
    steps: int,
    enough: Callable[[], bool],
    seed: int,
) -> None:
    """Train a decoder to write the cells of each way in their order, until it is good enough.

    Parameters
    ----------
    model : nn.Module
        A causal language model of transformers, changed in place.
    ids, way
        As ``arrows`` returns them.
    steps : int
        At most.
    enough : callable
        Asked after each ten steps.
    seed : int
        Draws the batches.
    """
    draw, length = torch.Generator().manual_seed(seed), way.shape[1]
    note(rows=FIT)
    adam = torch.optim.Adam(model.parameters(), lr=RATE)
    for step in range(1, steps + 1):
        rows = torch.randint(FIT, (BATCH,), generator=draw)
        wanted = CELLS * CELLS + way[rows]
        logits = model(torch.cat([ids[rows], wanted[:, :-1]], 1)).logits[:, -length:]
        adam.zero_grad()
        cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
        adam.step()
        if step % EVERY == 0 and enough():
            return
