"""Checkpoints of one training run, and the accuracy of each."""

import itertools
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import rotate  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde_studies._digits import KNOWN, Net, net_of, pixels
from sonde_studies.arms import note

FIT, RATE = 400, 3e-3
DECAYS, NOISES, STOPS = (0.0, 0.3, 1.0), (0.0, 0.15, 0.3), (25, 75, 150, 400)
FEW_DECAYS, FEW_NOISES, FEW_STOPS = (0.0, 1.0), (0.0, 0.3), (10, 40)
FEW = FIT + 150
ANGLE, SIGMA = 30.0, 0.3


@dataclass(frozen=True)
class Data:
    """Training digits, and test digits: unchanged and with three distribution shifts."""

    x: Tensor
    label: Tensor
    fresh: Tensor
    fresh_label: Tensor
    shifted: dict[str, Tensor]


def data_of(seed: int, tiny: bool) -> Data:
    draw = np.random.default_rng(seed)
    x, digit = pixels()
    chosen = draw.permutation(10)[:KNOWN]
    known = draw.permutation(np.flatnonzero(np.isin(digit, chosen)))[: FEW if tiny else None]
    label = torch.from_numpy(np.searchsorted(np.sort(chosen), digit[known]))
    fresh = x[known[FIT:]]
    image = fresh.numpy().reshape(-1, 8, 8)
    sides = draw.choice([-1, 1], size=len(fresh))
    turned = [
        rotate(one, ANGLE * side, reshape=False, order=1)
        for one, side in zip(image, sides, strict=True)
    ]
    moved = [
        np.roll(one, int(side), axis=int(axis))
        for one, side, axis in zip(image, sides, draw.integers(0, 2, len(fresh)), strict=True)
    ]
    noisy = image + SIGMA * draw.standard_normal(image.shape)
    shifted = {"turned": turned, "moved": moved, "noisy": noisy}
    rows = {k: torch.from_numpy(np.stack(list(v))).float().flatten(1) for k, v in shifted.items()}
    return Data(x[known[:FIT]], label[:FIT], fresh, label[FIT:], rows)


def checkpoints_of(data: Data, seed: int, tiny: bool) -> list[Net]:
    decays, noises, stops = grid_of(tiny)
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.rand(FIT, generator=draw)
    other = (data.label + torch.randint(1, KNOWN, (FIT,), generator=draw)) % KNOWN
    return [
        net
        for decay, noise in itertools.product(decays, noises)
        for net in trained_on(
            data.x, torch.where(wrong < noise, other, data.label), decay, seed, stops
        )
    ]


@torch.enable_grad()
def trained_on(
    x: Tensor, label: Tensor, decay: float, seed: int, stops: tuple[int, ...]
) -> list[Net]:
    """Return a net at several steps of its training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = net_of("mlp")
    note(rows=len(x))
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=decay)
    found: list[Net] = []
    for step in range(1, stops[-1] + 1):
        optimiser.zero_grad()
        cross_entropy(model(x), label).backward()
        optimiser.step()
        if step in stops:
            found.append(deepcopy(model).eval())
    return found


@torch.no_grad()
def worth(net: nn.Module, data: Data) -> dict[str, float]:
    def accuracy(x: Tensor) -> float:
        return float((net(x).argmax(1) == data.fresh_label).double().mean())

    shifted = [accuracy(x) for x in data.shifted.values()]
    return {
        "shifted": sum(shifted) / len(shifted),
        "accuracy": accuracy(data.fresh),
        "minus the loss": -float(cross_entropy(net(data.fresh), data.fresh_label)),
    }


def grid_of(tiny: bool) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
    """Return the weight decays, the fractions of wrong labels and the numbers of steps."""
    return (FEW_DECAYS, FEW_NOISES, FEW_STOPS) if tiny else (DECAYS, NOISES, STOPS)
