"""Nets of two tasks that share their first layers, and where measures would part them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model, read
from sonde.layers import Fork
from sonde.measure import cka, gradient_conflict
from sonde_studies.parts.forks import task_gradients
from sonde_studies.worlds.learning import drawn, minimise

INPUTS, DEPTH, WIDTH = 64, 4, 40
"""Pixels, layers, and the width of a net whose layers are all shared."""


class Trunk(nn.Module):
    """Linear layers, each with a normalisation and a ReLU."""

    def __init__(self, first: int, last: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width if i else INPUTS, width), nn.LayerNorm(width), nn.ReLU())
            for i in range(first, last)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the states after the last layer."""
        for layer in self.layers:
            x = layer(x)
        return x


def forked(cut: int, width: int, outputs: Sequence[int]) -> Fork:
    """Return a net whose first ``cut`` layers are shared; each task has later layers and a head.

    Parameters
    ----------
    cut, width : int
    outputs : sequence of int
        Width of each task's answer.
    """
    trunk = Trunk(0, cut, width)
    own = [Trunk(cut, DEPTH, width) for _ in outputs]
    heads = [nn.Linear(width, n) for n in outputs]
    return Fork(trunk, [nn.Sequential(*pair) for pair in zip(own, heads, strict=True)])


def size_of(cut: int, width: int, outputs: Sequence[int]) -> int:
    """Return the number of parameters of a forked net."""
    with torch.device("meta"):
        return sum(p.numel() for p in forked(cut, width, outputs).parameters())


def equal_width(cut: int, outputs: Sequence[int]) -> int:
    """Return the width at which a fork has as many parameters as the net that shares all layers."""
    whole = size_of(DEPTH, WIDTH, outputs)
    return min(range(1, WIDTH + 1), key=lambda width: abs(size_of(cut, width, outputs) - whole))


def trained(
    losses: Mapping[int, Callable[[Tensor, Tensor], Tensor]],
    noisy: Callable[[Tensor], Tensor],
    cut: int,
    width: int,
    outputs: Sequence[int],
    *,
    n: int,
    steps: int,
    seed: int,
    start: int,
) -> Fork:
    """Return a trained net.

    Parameters
    ----------
    losses : mapping of int to callable
        By the width of its answer the loss of a task, from answers and the numbers of their rows.
    noisy : callable
        Returns the inputs of the rows with these numbers.
    cut, width, outputs
        Of the net.
    n, steps : int
        Rows, and steps of training.
    seed, start : int
        Draw the batches, and the weights.
    """
    net = drawn(lambda: forked(cut, width, outputs), start)

    def loss(rows: Tensor) -> Tensor:
        said = net(noisy(rows))
        return torch.stack(
            [losses[k](own, rows) for k, own in zip(outputs, said, strict=True)]
        ).sum()

    minimise(loss, net.parameters(), n, steps=steps, seed=seed)
    return net.eval()


@torch.no_grad()
def judged(
    net: Fork,
    x: Float[Tensor, "row pixel"],
    digit: Int[Tensor, "row"],
    clean: Float[Tensor, "row pixel"],
) -> tuple[float, float]:
    """Return the accuracy of the names, and R2 of the restored pixels."""
    named, restored = net(x)
    left = (restored - clean).square().mean() / (clean - clean.mean(0)).square().mean()
    return float((named.argmax(1) == digit).double().mean()), float(1 - left)


@torch.no_grad()
def similarities(
    net: Fork, x: Float[Tensor, "row pixel"], target: Float[Tensor, "row dim"]
) -> list[float]:
    """Return the debiased CKA of each shared layer's states with a target."""
    found = list[float]()
    for layer in cast(Trunk, net.shared).layers:
        x = layer(x)
        found.append(float(cka(x.double(), target.double()).value))
    return found


def parting(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> int:
    """Return the number of layers before the similarity curves of two nets part; all if never.

    The curves part at the first layer where nets are more similar to their own target than the
    other net is, on average over both targets, by at least half of the largest such difference.

    Parameters
    ----------
    first, second : sequence of two sequences of float
        Of each net the similarity over depth to the first net's target, and to the second's.
    """
    gap = [(a - c + d - b) / 2 for a, b, c, d in zip(*first, *second, strict=True)]
    most = max(gap)
    return next((i for i, far in enumerate(gap) if far >= most / 2 > 0), len(gap))


class _HeadLoss(nn.Module):
    """The loss of a task from the states of the last layer."""

    def __init__(self, head: nn.Module, unit: Tensor | None) -> None:
        super().__init__()
        self.head, self.unit = head, unit

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if self.unit is None:
            return cross_entropy(self.head(x), label)
        return (self.head(x) - label).square().mean() / self.unit


def agreements(
    net: Fork, x: Float[Tensor, "row pixel"], truths: tuple[Tensor, Tensor], unit: Tensor
) -> list[float]:
    """Return the cosine between the mean gradients of naming and restoring at each layer.

    Parameters
    ----------
    net : Fork
        Shares all layers.
    x : Float[Tensor, "row pixel"]
    truths : (Int[Tensor, "row"], Float[Tensor, "row pixel"])
        Digits and clean images.
    unit : Tensor
        Variance of the pixels, the unit of the restoring loss.
    """
    model, items = Model(net.shared), [{"x": row} for row in x]
    blocks: list[Any] = [s.site for s in read(model, items, check=False).schema]
    last: list[Any] = [cast(nn.Sequential, branch)[-1] for branch in net.branches]
    heads: list[Any] = [_HeadLoss(h, u) for h, u in zip(last, (None, unit), strict=True)]
    site = str(blocks[-1])
    parts, task = task_gradients(model, items, site, heads, [*truths], blocks, seed=0)
    return [float(gradient_conflict(own, task).value) for own in parts.values()]
