"""Small nets on scikit-learn's digits whose hidden layers are read at several training steps."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn import functional

from sonde_studies.arms import note
from sonde_studies.worlds.learning import digit_images

PIXELS, KINDS, BATCH = 64, 10, 64


@dataclass(frozen=True)
class Split:
    """Training digits and test digits."""

    x: Float[Tensor, "row pixel"]
    label: Int[Tensor, "row"]
    x_test: Float[Tensor, "row2 pixel"]
    label_test: Int[Tensor, "row2"]


def split(seed: int, n_train: int, n_test: int | None = None) -> Split:
    """Return the digits in random order; the first ones are for training."""
    x, label = digit_images(seed)
    x = x.flatten(1)
    return Split(x[:n_train], label[:n_train], x[n_train:][:n_test], label[n_train:][:n_test])


class Residual(nn.Module):
    """``x + relu(linear(x))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows after the block."""
        return x + functional.relu(self.inner(x))


def plain_net(
    seed: int,
    widths: Sequence[int],
    act: type[nn.Module] = nn.ReLU,
    inputs: int = PIXELS,
    outputs: int = KINDS,
) -> nn.Sequential:
    """Return an untrained net with one hidden layer for each width, and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [inputs, *widths]
        hidden = [nn.Sequential(nn.Linear(a, b), act()) for a, b in pairwise(sizes)]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))


def residual_net(seed: int, width: int = PIXELS, blocks: int = 6) -> nn.Sequential:
    """Return an untrained net of residual blocks after a linear map, and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inner = [Residual(width) for _ in range(blocks)]
        return nn.Sequential(nn.Linear(PIXELS, width), *inner, nn.Linear(width, KINDS))


@torch.no_grad()
def layers_of(model: nn.Sequential, x: Float[Tensor, "row pixel"]) -> list[Float[Tensor, "row _"]]:
    """Return the rows after each part of the net except the head."""
    found: list[Tensor] = []
    for part in list(model)[:-1]:
        x = part(x)
        found.append(x)
    return found


@torch.no_grad()
def loss(model: nn.Module, x: Tensor, label: Tensor) -> float:
    """Return the mean cross-entropy in nats."""
    return float(functional.cross_entropy(model(x), label))


@torch.enable_grad()
def trained(
    model: nn.Sequential,
    x: Float[Tensor, "row pixel"],
    label: Int[Tensor, "row"],
    steps: int,
    seed: int,
    rate: float = 1e-3,
    decay: float = 0.0,
    at: Sequence[int] = (),
    batch: int = BATCH,
    plain: bool = False,
) -> Iterator[nn.Sequential]:
    """Train in batches; yield copies of the net after these steps and the last.

    AdamW trains the net, or with ``plain`` stochastic gradient descent without momentum.
    """
    draw = torch.Generator().manual_seed(seed)
    note(rows=len(x))
    kind = torch.optim.SGD if plain else torch.optim.AdamW
    optimiser = kind(model.parameters(), lr=rate, weight_decay=decay)
    for step in range(steps):
        if step in at:
            yield deepcopy(model).eval()
        rows = torch.randint(len(x), (min(batch, len(x)),), generator=draw)
        optimiser.zero_grad()
        functional.cross_entropy(model(x[rows]), label[rows]).backward()
        optimiser.step()
    yield model.eval()


def probed(x: Float[Tensor, "row dim"], label: Int[Tensor, "row"], n_fit: int) -> float:
    """Return the accuracy of a least-squares probe of labels on the rows after ``n_fit``."""
    rows = torch.cat([x, torch.ones(len(x), 1)], 1)
    wanted = functional.one_hot(label).float()
    weight = torch.linalg.lstsq(rows[:n_fit], wanted[:n_fit], driver="gelsd").solution
    return float(((rows[n_fit:] @ weight).argmax(1) == label[n_fit:]).double().mean())


def partial_rank_correlation(x: Tensor, y: Tensor, given: Tensor) -> float:
    """Return Spearman's correlation of two quantities, controlled for a third."""
    first, second, third = (torch.from_numpy(rankdata(v)) for v in (x, y, given))
    return float(torch.corrcoef(torch.stack([_without(r, third) for r in (first, second)]))[0, 1])


def _without(y: Tensor, x: Tensor) -> Tensor:
    y, x = y - y.mean(), x - x.mean()
    return y - x * (x @ y) / (x @ x)
