"""Deep residual nets on digits, and the cost of rounding any set of their blocks to two bits."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise, permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from sonde.compress import RTN
from sonde.measure import cca
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.worlds.learning import drawn, learn_labels

BLOCKS, DIM, WIDTH, TRAIN, STEPS, GROUP = 7, 48, 64, 1_000, 500, 16
HIGH, LOW, SMALL_SHARE = 8, 2, 0.1


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
        return self.head(self.states(x)[-1])

    def states(self, x: Tensor) -> list[Tensor]:
        """Return the state before each block, and after the last."""
        found = [self.first(x)]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found


class Rounded:
    """A trained net, and its divergence with any set of blocks at two bits, the rest at eight."""

    def __init__(self, seed: int, tiny: bool) -> None:
        x, label = shuffled_digits(seed)
        self.x, self.label = x[:TRAIN], label[:TRAIN]
        self.fresh, self.truth = x[TRAIN:], label[TRAIN:]
        self.net: Any = drawn(Net, seed)
        learn_labels(self.net, self.x, self.label, steps=60 if tiny else STEPS, seed=seed)
        self.kl, self.accuracy = self._table()

    @torch.no_grad()
    def _table(self) -> tuple[dict[frozenset[int], float], dict[frozenset[int], float]]:
        rounded: dict[int, Any] = {
            bits: RTN(bits, GROUP).plan(self.net).fold(self.net) for bits in (HIGH, LOW)
        }
        log_p = self.net(self.fresh).log_softmax(1)
        kl: dict[frozenset[int], float] = {}
        right: dict[frozenset[int], float] = {}
        for code in range(2**BLOCKS):
            low = frozenset(i for i in range(BLOCKS) if code >> i & 1)
            state = rounded[HIGH].first(self.fresh)
            for i in range(BLOCKS):
                state = rounded[LOW if i in low else HIGH].blocks[i](state)
            log_q = rounded[HIGH].head(state).log_softmax(1)
            kl[low] = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
            right[low] = float((log_q.argmax(1) == self.truth).double().mean())
        return kl, right

    def area(self, order: Sequence[int]) -> float:
        """Return the mean divergence while blocks are rounded one by one in this order."""
        return sum(self.kl[frozenset(order[:n])] for n in range(1, BLOCKS)) / (BLOCKS - 1)

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

    @torch.no_grad()
    def little_moved(self) -> list[float]:
        """Return minus the mean cosine between each block's input and output."""
        states = self.net.states(self.x)
        pairs = pairwise(states)
        return [-float(cosine_similarity(a, b, dim=1).mean()) for a, b in pairs]

    def far_weights(self) -> list[float]:
        """Return minus the fraction of each block's weights beyond one deviation from the mean."""
        found: list[float] = []
        for block in self.net.blocks:
            w = torch.cat([block.up.weight.flatten(), block.down.weight.flatten()]).detach()
            found.append(-float(((w - w.mean()) / w.std() > 1).double().mean()))
        return found

    @torch.no_grad()
    def correlated(self) -> list[float]:
        """Return minus the mean canonical correlation between each block's input and output."""
        states = self.net.states(self.x)
        return [-float(cca(a, b)) for a, b in pairwise(states)]

    @torch.no_grad()
    def pruned(self) -> list[float]:
        """Return the increase of the loss without each block's smallest weights."""
        before = float(cross_entropy(self.net(self.x), self.label))
        found: list[float] = []
        for block in self.net.blocks:
            kept = [(layer, layer.weight.clone()) for layer in (block.up, block.down)]
            for layer, w in kept:
                least = w.abs().flatten().quantile(SMALL_SHARE)
                layer.weight.copy_(w.masked_fill(w.abs() < least, 0.0))
            found.append(float(cross_entropy(self.net(self.x), self.label)) - before)
            for layer, w in kept:
                layer.weight.copy_(w)
        return found

    @torch.enable_grad()
    def taylor(self) -> list[float]:
        """Return the sum of ``|gradient x change of the weight|`` of each block."""
        layers = [layer for block in self.net.blocks for layer in (block.up, block.down)]
        loss = cross_entropy(self.net(self.x), self.label)
        slopes = torch.autograd.grad(loss, [layer.weight for layer in layers])
        plan = RTN(LOW, GROUP).plan(self.net)
        found: list[float] = []
        for i in range(BLOCKS):
            total = 0.0
            for k, name in enumerate(("up", "down")):
                w = layers[2 * i + k].weight.detach()
                gap = plan.changes[f"blocks.{i}.{name}.weight"].of(w) - w
                total += float((slopes[2 * i + k] * gap).abs().sum())
            found.append(total)
        return found

    def alone(self) -> list[float]:
        """Return the divergence with only one block at two bits, for each block."""
        return [self.kl[frozenset([i])] for i in range(BLOCKS)]


@cache
def rounded_net(seed: int, tiny: bool) -> Rounded:
    """Return the trained net of a seed; two studies use it."""
    return Rounded(seed, tiny)
