"""Deep residual nets on digits, and the cost of rounding any set of their blocks to two bits."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress import RTN, BitAllocation
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import trained_once
from sonde_studies.study import Claim
from sonde_studies.worlds.learning import drawn, learn_labels

BLOCKS, DIM, WIDTH, TRAIN, STEPS, GROUP = 7, 48, 64, 1_000, 500, 16
HIGH, LOW = 8, 2
BY_LOT = Claim("by lot", "Twenty orders by lot cost what all orders do.",
               "mean divergence of all orders less that of twenty, as a share")  # fmt: skip
Table = Mapping[frozenset[int], float]
"""A figure for each set of blocks that are rounded to two bits."""
LayerScore = Literal["lim", "zd", "cca", "prune", "taylor"]


class Block(nn.Module):
    """Residual block: adds a function of the normalised state."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(DIM), nn.Linear(DIM, WIDTH)
        self.down = nn.Linear(WIDTH, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state plus the block's output."""
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    """A linear map, blocks, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, DIM), nn.Linear(DIM, 10)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of rows of pixels."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Rounded:
    """A trained net, and its divergence with any set of blocks at two bits, the rest at eight."""

    def __init__(self, seed: int, tiny: bool) -> None:
        x, label = shuffled_digits(seed)
        self.x, self.label = x[:TRAIN], label[:TRAIN]
        self.fresh, self.truth = x[TRAIN:], label[TRAIN:]
        self.net: Any = drawn(Net, seed)
        learn_labels(self.net, self.x, self.label, steps=60 if tiny else STEPS, seed=seed)
        self.kl, self.accuracy = self._table(self.fresh, self.truth)

    @torch.no_grad()
    def _table(self, rows: Tensor, truth: Tensor) -> tuple[Table, Table]:
        rounded: dict[int, Any] = {
            bits: RTN(bits, GROUP).plan(self.net).fold(self.net) for bits in (HIGH, LOW)
        }
        log_p = self.net(rows).log_softmax(1)
        kl: dict[frozenset[int], float] = {}
        right: dict[frozenset[int], float] = {}
        for code in range(2**BLOCKS):
            low = frozenset(i for i in range(BLOCKS) if code >> i & 1)
            state = rounded[HIGH].first(rows)
            for i in range(BLOCKS):
                state = rounded[LOW if i in low else HIGH].blocks[i](state)
            log_q = rounded[HIGH].head(state).log_softmax(1)
            kl[low] = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
            right[low] = float((log_q.argmax(1) == truth).double().mean())
        return kl, right

    def area(self, order: Sequence[int]) -> float:
        """Return the mean divergence while blocks are rounded one by one in this order."""
        return _area(self.kl, order)

    def best_area(self) -> tuple[float, float]:
        """Return the areas of the order that half of the test rows choose, and of all orders.

        The other half judges: the best of 5,040 orders on the rows that chose it looks too good.
        """
        half = len(self.fresh) // 2
        chosen, judged = (self._table(self.fresh[part], self.truth[part])[0]
                          for part in (slice(half), slice(half, None)))  # fmt: skip
        best = min(permutations(range(BLOCKS)), key=lambda order: _area(chosen, order))
        areas = [_area(judged, order) for order in permutations(range(BLOCKS))]
        return _area(judged, best), sum(areas) / len(areas)

    def areas(self) -> Float[Tensor, "order"]:
        """Return the mean divergence for all orders."""
        return torch.tensor([self.area(order) for order in permutations(range(BLOCKS))])

    def by_lot(self, seed: int, n: int = 20) -> float:
        """Return the mean divergence for some random orders."""
        draw = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(BLOCKS, generator=draw).tolist() for _ in range(n)]
        return sum(map(self.area, orders)) / n

    def order(self, scores: Sequence[float]) -> list[int]:
        """Return the blocks by score, lowest first; the first block is rounded first."""
        return sorted(range(BLOCKS), key=lambda i: scores[i])

    def scores(self, score: LayerScore) -> list[float]:
        """Return the score of each block: the sum over its layers, as ``BitAllocation`` has it."""
        widths, mean = (LOW, HIGH), (LOW + HIGH) / 2
        rule = BitAllocation(mean, GROUP, widths, score=score, layers=("blocks.*",))
        found = rule.plan(self.net, {"calibration": self.x}).figures
        return [
            sum(found[f"score.blocks.{i}.{layer}"] for layer in ("up", "down"))
            for i in range(BLOCKS)
        ]

    def alone(self) -> list[float]:
        """Return the divergence with only one block at two bits, for each block."""
        return [self.kl[frozenset([i])] for i in range(BLOCKS)]


def _area(kl: Table, order: Sequence[int]) -> float:
    return sum(kl[frozenset(order[:n])] for n in range(1, BLOCKS)) / (BLOCKS - 1)


@trained_once
def rounded_net(seed: int, tiny: bool) -> Rounded:
    """Return the trained net of a seed; two studies use it."""
    return Rounded(seed, tiny)
