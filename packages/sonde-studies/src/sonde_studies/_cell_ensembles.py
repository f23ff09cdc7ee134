"""Recurrent cells that read a digit in several ways, with one shared state or apart."""

from contextlib import nullcontext
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import SourceFusion
from sonde.train import SparseTraining
from sonde_studies._handmade_features import Pixels
from sonde_studies.arms import note
from sonde_studies.worlds.learning import drawn

EPOCHS, BATCH, RATE, DENSITY, REBUILD = 40, 64, 1e-2, 0.1, 0.3
How = Literal["shared", "apart", "frozen"]


def readings(x: Pixels) -> list[Float[Tensor, "digit step width"]]:
    """Return a digit's lines, its columns, and its squares of 2 x 2 pixels."""
    lines = x.reshape(-1, 8, 8)
    squares = rearrange(lines, "n (a y) (b x) -> n (a b) (y x)", y=2, x=2)
    return [lines, lines.transpose(1, 2), squares]


def entropies(x: Pixels) -> Float[Tensor, "digit 16"]:
    """Return the entropies of the ink of all lines and columns, about standard."""
    pictures = x.reshape(-1, 8, 8) + 1e-6
    shares = [pictures / pictures.sum(axis, keepdim=True) for axis in (2, 1)]
    found = [-(p * p.log()).sum(axis) for p, axis in zip(shares, (2, 1), strict=True)]
    return torch.cat(found, 1) - 1.3


class Cells(nn.Module):
    """A recurrent cell for each reading, with a shared state, a head and maps that rebuild.

    Parameters
    ----------
    which : sequence of int
        Numbers of the readings; one may be read by several cells.
    width, dim : int
        Of the cells and of the shared state.
    numbers : bool
        Whether entropies are one more source.
    """

    def __init__(self, which: tuple[int, ...], width: int, dim: int, numbers: bool) -> None:
        super().__init__()
        self.which, self.numbers = which, numbers
        sizes = [4 if i == 2 else 8 for i in which]
        self.cells = nn.ModuleList(nn.GRU(size, width, batch_first=True) for size in sizes)
        self.fusion = SourceFusion([width] * len(which) + [16] * numbers, dim, [64] * len(which))
        self.head = nn.Linear(dim, 10)

    def states(self, x: Pixels) -> list[Tensor]:
        """Return the last state of each cell."""
        read = readings(x)
        return [cell(read[i])[0][:, -1] for cell, i in zip(self.cells, self.which, strict=True)]

    def fused(self, x: Pixels, states: list[Tensor]) -> Tensor:
        """Return the shared state."""
        return self.fusion(*states, *([entropies(x)] if self.numbers else []))

    def forward(self, x: Pixels) -> Tensor:
        """Return the logits."""
        return self.head(self.fused(x, self.states(x)))

    def loss(self, x: Pixels, label: Tensor, states: list[Tensor], rebuild: float) -> Tensor:
        """Return the loss of the task, plus that of what the shared state rebuilds."""
        shared = self.fused(x, states)
        loss = cross_entropy(self.head(shared), label)
        if not rebuild:
            return loss
        read = readings(x)
        flat = [read[i].flatten(1) for i in self.which]
        return loss + rebuild * self.fusion.rebuild_loss(shared, *flat)


@torch.enable_grad()
def train(
    net: Cells, x: Pixels, label: Int[Tensor, "digit"], seed: int, density: float,
    rebuild: float = REBUILD, frozen: bool = False, epochs: int = EPOCHS,
) -> Cells:  # fmt: skip
    """Train cells, fusion and head in one loss; ``frozen``: fusion and head alone."""
    moved = [*net.fusion.parameters(), *net.head.parameters()] if frozen else net.parameters()
    optimiser: Any = torch.optim.Adam(list(moved), lr=RATE)
    note(rows=len(x))
    sparse = SparseTraining(density=density, score="random", fixed=True, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        known = net.states(x) if frozen else []
    dense = density == 1 or frozen
    with nullcontext() if dense else sparse.on(net.cells, optimiser):
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=draw).split(BATCH):
                states = [h[rows] for h in known] if frozen else net.states(x[rows])
                optimiser.zero_grad()
                net.loss(x[rows], label[rows], states, rebuild).backward()
                optimiser.step()
    return net.eval()


def cells_right(
    fit: tuple[Tensor, Tensor], judge: tuple[Tensor, Tensor], seed: int, *, how: How = "shared",
    which: tuple[int, ...] = (0, 1, 2), width: int = 24, dim: int = 32, numbers: bool = False,
    density: float = DENSITY, rebuild: float = REBUILD, epochs: int = EPOCHS,
) -> float:  # fmt: skip
    """Return the accuracy of cells on digits that judge.

    Parameters
    ----------
    fit, judge : (Float[Tensor, "digit 64"], Int[Tensor, "digit"])
    seed : int
    how : {"shared", "apart", "frozen"}, default="shared"
        One loss; each cell with its own fusion and head, whose chances are averaged; or the cells
        of these, as they are, under a fusion that is trained then.
    which, width, dim, numbers : as ``Cells`` takes them
    density : float
        Fraction of the cells' weights that is used.
    rebuild : float
        Weight of the loss of what is rebuilt.
    epochs : int
    """
    x, label = fit
    net = drawn(lambda: Cells(which, width, dim, numbers), seed)
    alone = [
        train(drawn(lambda i=i: Cells((i,), width, dim, numbers), seed + k), x, label,
              seed + k, density, rebuild, epochs=epochs)
        for k, i in enumerate(() if how == "shared" else which)
    ]  # fmt: skip
    with torch.no_grad():
        if how == "apart":
            chance = torch.stack([one(judge[0]).softmax(1) for one in alone]).mean(0)
            return float((chance.argmax(1) == judge[1]).double().mean())
        for own, one in zip(net.cells, alone, strict=how == "frozen"):
            own.load_state_dict(one.cells[0].state_dict())
        train(net, x, label, seed, density, rebuild, how == "frozen", epochs)
        return float((net(judge[0]).argmax(1) == judge[1]).double().mean())
