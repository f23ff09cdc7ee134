"""Residual blocks on a frozen embedding: added and trained one by one, or all at once."""

from collections.abc import Callable, Iterator
from copy import deepcopy

from torch import Tensor, nn

from sonde.train import Resize
from sonde_studies.worlds.learning import drawn

DEPTH, PIXELS, WIDTH, KINDS, TURN = 3, 64, 48, 10, 6
Train = Callable[[nn.Module, int, int], nn.Module]
"""Takes a net, a number of steps and what is added to the seed; trains what is not frozen."""


class ResidualBlock(nn.Module):
    """A perceptron of normed states, added to the states."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """Return the states after the block."""
        return h + self.down(self.up(self.norm(h)).relu())


class Deep(nn.Module):
    """Residual blocks on an embedding of digits, and a head.

    Parameters
    ----------
    depth : int
        Number of blocks.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS, WIDTH)
        self.blocks = nn.ModuleList(ResidualBlock() for _ in range(depth))
        self.head = nn.Linear(WIDTH, KINDS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of rows of pixels."""
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def one_by_one(train: Train, steps: int, seed: int, few: Tensor) -> Iterator[nn.Module]:
    """Yield the net after each added block; only the block and the head are trained.

    Parameters
    ----------
    train : callable
    steps : int
        Of all blocks together.
    seed : int
    few : Tensor (row, pixel)
        Some inputs, with which ``Resize`` finds the layers that write to the states.
    """
    net = drawn(lambda: Deep(1), seed)
    for depth in range(1, DEPTH + 1):
        if depth > 1:
            net = Resize(depth="stack").of(net, like=Deep(depth), inputs=few)
        net.requires_grad_(False)
        for part in (net.blocks[-1], net.head):
            part.requires_grad_(True)
        yield train(net, steps // DEPTH, TURN + depth)


def without_each(train: Train, steps: int, seed: int, few: Tensor) -> Iterator[nn.Module]:
    """Yield, for each block but the first, the net before it after as many steps without it."""
    for depth, net in enumerate(one_by_one(train, steps, seed, few), 2):
        if depth <= DEPTH:
            yield train(deepcopy(net), steps // DEPTH, TURN + depth)


def one_alone(train: Train, steps: int, seed: int, few: Tensor) -> nn.Module:
    """Return a net of one block that was trained for the steps of all blocks."""
    net = next(one_by_one(train, steps, seed, few))
    for depth in range(2, DEPTH + 1):
        train(net, steps // DEPTH, TURN + depth)
    return net


def at_once(train: Train, steps: int, seed: int) -> nn.Module:
    """Return a net whose blocks were all trained together on the frozen embedding."""
    net = drawn(lambda: Deep(DEPTH), seed)
    net.first.requires_grad_(False)
    return train(net, steps, TURN)
