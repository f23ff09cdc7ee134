"""Initialisation and training of the studies' small nets, and the digits they learn."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde_studies._digits import shuffled
from sonde_studies.arms import note

Net = TypeVar("Net", bound=nn.Module)


@torch.enable_grad()
def minimise(
    loss: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    n: int,
    *,
    steps: int,
    seed: int,
    rate: float = 3e-3,
    batch: int = 64,
    falls: bool = False,
) -> None:
    """Minimise a loss by Adam, with batches sampled from ``n`` examples.

    Parameters
    ----------
    loss : callable
        Takes the numbers of the examples of a batch.
    parameters : iterable of nn.Parameter
    n : int
        Examples to draw from.
    steps, seed, rate, batch
        The seed draws batches and what is random in the nets, such as dropout.
    falls : bool, default=False
        The rate falls to zero by half a cosine.
    """
    moved = list(parameters)
    note(rows=n)
    optimiser = torch.optim.Adam(moved, lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps) if falls else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            optimiser.zero_grad()
            loss(torch.randint(n, (batch,))).backward()
            optimiser.step()
            if falling is not None:
                falling.step()
    optimiser.zero_grad()


def drawn(make: Callable[[], Net], seed: int) -> Net:
    """Return a net initialised from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, label: Tensor) -> float:
    """Return the accuracy of logits against labels."""
    return float((model(x).argmax(1) == label).double().mean())


def digit_images(seed: int) -> tuple[Float[Tensor, "image 1 8 8"], Int[Tensor, "image"]]:
    """Return the 1,797 digits in an order given by a seed, and their labels."""
    x, label = shuffled(torch.Generator().manual_seed(seed))
    return x.reshape(-1, 1, 8, 8), label


def squares_of(x: Float[Tensor, "image *pixels"], side: int) -> Float[Tensor, "image square pixel"]:
    """Return the squares of ``side`` x ``side`` pixels of digits of 8 x 8, line by line."""
    n = 8 // side
    return x.reshape(-1, n, side, n, side).transpose(2, 3).reshape(-1, n * n, side * side)


def learn_labels(
    model: nn.Module,
    x: Float[Tensor, "image *axes"],
    label: Int[Tensor, "image"],
    *,
    steps: int,
    seed: int,
    rate: float = 3e-3,
    part: nn.Module | None = None,
) -> None:
    """Train a classifier, or a part of it alone, by cross-entropy and set it to evaluation mode."""

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(model(x[rows]), label[rows])

    model.train()
    moved = (model if part is None else part).parameters()
    minimise(loss, moved, len(x), steps=steps, seed=seed, rate=rate)
    model.eval()
