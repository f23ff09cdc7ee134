"""A net with nested dropout, and two nets that choose rows for each other."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import NestedDropout, Select
from sonde_studies.worlds.learning import drawn, minimise

WIDTH = 128
"""Units of the second layer that nested dropout orders."""


class NestedNet(nn.Module):
    """Two hidden layers and a head, with nested dropout on the second if ``nested`` is set."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.nested: NestedDropout | None = None
        parts = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, width), nn.ReLU())
        self.body, self.head = nn.Sequential(*parts), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        states = self.body(x)
        return self.head(states if self.nested is None else self.nested.change(states))

    @torch.no_grad()
    def accuracy(self, x: Tensor, label: Tensor, width: int) -> float:
        """Return the accuracy with the first units only."""
        said = self.head(NestedDropout.truncated(width)(self.body(x))).argmax(1)
        return float((said == label).double().mean())


def taught(x: Tensor, given: Tensor, seed: int, steps: int, noise: float, std: float) -> NestedNet:
    """Return one of two nets that select small-loss rows for each other.

    Parameters
    ----------
    x : Float[Tensor, "row pixel"]
    given : Int[Tensor, "row"]
        Labels, some of them wrong.
    seed, steps : int
    noise : float
        Fraction of rows left out after a quarter of the steps.
    std : float
        Standard deviation of the width of nested dropout; 0 for none.
    """
    pair = nn.ModuleList(drawn(NestedNet, seed + 1_000 * i) for i in range(2))
    for net in pair:
        net.nested = NestedDropout(std=std, per="row", seed=seed) if std else None  # pyright: ignore
    select, done = Select("co_teaching", remove=noise, steps=steps // 4), 0

    def value(rows: Tensor) -> Tensor:
        nonlocal done
        each = [cross_entropy(net(x[rows]), given[rows], reduction="none") for net in pair]
        chosen = select(each[0].detach(), each[1].detach(), step=done)
        done += 1
        return sum((e * w).sum() / w.sum() for e, w in zip(each, chosen, strict=True))  # pyright: ignore

    minimise(value, pair.parameters(), len(given), steps=steps, seed=seed)
    return pair[0]  # pyright: ignore
