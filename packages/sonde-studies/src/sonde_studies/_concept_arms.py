"""A net whose concepts, clusters of its units, are contrasted over angles of digits."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from sonde.measure import unit_clusters
from sonde.train import Contrast
from sonde_studies.worlds.learning import minimise

DIM, CLUSTERS, LARGEST, EVERY = 64, 5, 20, 30
WEIGHT, HEAT = 0.5, 0.2
Contrasts = Callable[[int], Contrast | None]
"""From the number of steps so far to the contrast of the next step."""


class Net(nn.Module):
    """A perceptron; its second hidden layer is contrasted."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, DIM), nn.ReLU())
        self.head = nn.Linear(DIM, 10)

    def states(self, x: Float[Tensor, "row pixel"]) -> Float[Tensor, "row dim"]:
        """Return the second hidden layer."""
        return self.body(x)

    def forward(self, x: Float[Tensor, "row pixel"]) -> Float[Tensor, "row class"]:
        """Return logits."""
        return self.head(self.states(x))


def turned_by(x: Float[Tensor, "row pixel"], degrees: float) -> Float[Tensor, "row pixel"]:
    """Return digits rotated about their centre."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    c, s = float(angle.cos()), float(angle.sin())
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(x), 2, 3)
    grid = affine_grid(turn, [len(x), 1, 8, 8], align_corners=False)
    return grid_sample(x.reshape(-1, 1, 8, 8), grid, align_corners=False).flatten(1)


@torch.no_grad()
def concepts_of(net: Net, x: Float[Tensor, "row pixel"]) -> Int[Tensor, "dim"]:
    """Return the cluster of each unit of the contrasted layer."""
    return unit_clusters(net.states(x), k=CLUSTERS, largest=LARGEST).cluster


def of_concepts(ids: Int[Tensor, "dim"]) -> Contrast:
    """Return the contrast of the largest unit of each cluster."""
    return Contrast(HEAT, concepts=ids.tolist())


def constant(contrast: Contrast | None) -> Contrasts:
    """Return the same contrast for all steps."""
    return lambda _: contrast


def found_anew(
    net: Net, x: Float[Tensor, "row pixel"], shuffled_by: int | None = None
) -> Contrasts:
    """Return contrasts whose clusters are found in the net's states anew every 30 steps.

    Parameters
    ----------
    net : Net
        Read when the contrast of a step is asked for.
    x : Float[Tensor, "row pixel"]
    shuffled_by : int, optional
        Seed that deals the clusters to units at random, for groups of equal sizes and equal cost.
    """
    draw = None if shuffled_by is None else torch.Generator().manual_seed(shuffled_by)

    def find() -> Contrast:
        ids = concepts_of(net, x)
        return of_concepts(ids if draw is None else ids[torch.randperm(DIM, generator=draw)])

    now = find()

    def at(step: int) -> Contrast:
        nonlocal now
        if step and step % EVERY == 0:
            now = find()
        return now

    return at


def learn(
    net: Net,
    x: Float[Tensor, "row pixel"],
    label: Int[Tensor, "row"],
    angle: Int[Tensor, "row"],
    contrasts: Contrasts,
    seed: int,
    steps: int,
) -> None:
    """Train a net by cross-entropy, plus the contrast of classes over angles if there is one."""
    done = 0

    def loss(rows: Tensor) -> Tensor:
        nonlocal done
        contrast, done = contrasts(done), done + 1
        states = net.states(x[rows])
        value = cross_entropy(net.head(states), label[rows])
        if contrast is None:
            return value
        return value + WEIGHT * contrast(states, label=label[rows], group=angle[rows])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, batch=96)
