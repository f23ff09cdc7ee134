"""Print which codes ``sonde compare`` gives for known changes of trained nets.

Two kinds of net on digits: fully connected and convolutional. A change should have its codes alone:
equal nets CMP001, a few more steps CMP002, another order of units CMP002 and CMP003, a layer that
was drawn anew or a net trained from other weights CMP002 and CMP004.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from tools.figures._table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sonde
from sonde.run.comparing.two_models import RowSample, compare_models
from sonde.run.comparing.two_models_findings import model_findings

N_TRAIN, STEPS, MORE, RATE, NOISE = 1200, 300, 20, 3e-3, 1e-6


def dense() -> nn.Sequential:
    """Return a fully connected net; layers 0 and 2 have weights."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)
    )


def convolutional() -> nn.Sequential:
    """Return a convolutional net of the same places."""
    first = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1))
    second, head = nn.Conv2d(32, 32, 3, 2, 1), nn.Sequential(nn.Flatten(), nn.Linear(512, 10))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), head)


def trained(net: nn.Sequential, x: Tensor, y: Tensor, steps: int, seed: int) -> nn.Sequential:
    """Return a net after some steps of Adam."""
    draw, optimiser = torch.Generator().manual_seed(seed), torch.optim.Adam(net.parameters(), RATE)
    for _ in range(steps):
        rows = torch.randint(0, N_TRAIN, (64,), generator=draw)
        optimiser.zero_grad()
        cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return net.eval()


@torch.no_grad()
def noisy(net: nn.Sequential) -> nn.Sequential:
    """Return a copy whose weights differ by rounding."""
    new = copy.deepcopy(net)
    for p in new.parameters():
        p.add_(NOISE * torch.randn_like(p))
    return new


@torch.no_grad()
def reordered(net: Any) -> Any:
    """Return a copy that computes the same with the units of the first layer in another order."""
    new = copy.deepcopy(net)
    first = new[0] if isinstance(new[0], nn.Linear) else new[0][1]
    order = torch.randperm(len(first.weight))
    first.weight.copy_(first.weight[order])
    first.bias.copy_(first.bias[order])
    new[2].weight.copy_(new[2].weight[:, order])
    return new


def redrawn(net: Any) -> Any:
    """Return a copy whose second layer is drawn anew."""
    new = copy.deepcopy(net)
    new[2].reset_parameters()
    return new


def changes(
    make: Callable[[], nn.Sequential], x: Tensor, y: Tensor, seed: int
) -> Iterator[tuple[str, nn.Sequential, nn.Sequential]]:
    """Yield each change by name, with the net before and after it."""
    torch.manual_seed(seed)
    net = trained(make(), x, y, STEPS, seed)
    yield "equal", net, copy.deepcopy(net)
    yield "rounding", net, noisy(net)
    yield "a few more steps", net, trained(copy.deepcopy(net), x, y, MORE, seed + 1)
    yield "another order of units", net, reordered(net)
    yield "a layer drawn anew", net, redrawn(net)
    yield "trained from other weights", net, trained(make(), x, y, STEPS, seed)


def codes(nets: tuple[Any, Any], rows: Tensor) -> str:
    """Return the codes of a comparison at both hidden layers."""
    fits = [
        sonde.fit(RowSample(), sonde.read(net, rows, sites=["1", "3"]), progress=False)
        for net in nets
    ]
    found = model_findings(compare_models(*fits, progress=False))
    return " ".join(finding.code for finding in found)


def table(seeds: int = 5) -> Table:
    """Print a line for each kind of net and change.

    Parameters
    ----------
    seeds
        Nets of each kind.
    """
    images, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(images).float() / 8 - 1, torch.as_tensor(labels)
    for make in (dense, convolutional):
        seen: dict[str, Counter[str]] = {}
        for seed in range(seeds):
            for name, *nets in changes(make, x, y, seed):
                seen.setdefault(name, Counter())[codes((nets[0], nets[1]), x[N_TRAIN:])] += 1
        for name, counts in seen.items():
            each = ", ".join(f"{word} ({n} of {seeds})" for word, n in counts.most_common())
            yield f"{make.__name__:<14}{name:<28}{each}"
