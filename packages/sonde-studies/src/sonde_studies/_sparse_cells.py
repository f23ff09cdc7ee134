"""A recurrent cell that reads a digit line by line, dense or with few fixed weights."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import SparseTraining
from sonde_studies.arms import note
from sonde_studies.worlds.learning import drawn

WIDTH, EPOCHS, BATCH = 48, 40, 64


class Cell(nn.Module):
    """A recurrent layer over eight lines of eight pixels; returns its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(8, WIDTH, batch_first=True), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state after the last line."""
        return self.cell(x.reshape(-1, 8, 8))[0][:, -1]

    @torch.no_grad()
    def accuracy(self, x: Tensor, label: Tensor) -> float:
        """Return the accuracy of the head."""
        return float((self.head(self(x)).argmax(1) == label).double().mean())


@torch.enable_grad()
def recurrent_cell(x: Tensor, label: Tensor, seed: int, density: float) -> Cell:
    """Return a cell trained to classify digits; below 1, a random fraction of weights is used."""
    net = drawn(Cell, seed)
    note(rows=len(x))
    optimiser: Any = torch.optim.Adam(net.parameters(), lr=5e-3)
    few = SparseTraining(density=density, score="random", fixed=True, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with few.on(net.cell, optimiser) if density < 1 else nullcontext():
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x), generator=draw).split(BATCH):
                optimiser.zero_grad()
                cross_entropy(net.head(net(x[rows])), label[rows]).backward()
                optimiser.step()
    return net.eval()
