"""Digits, a tenth with a white corner and label seven, and a net trained on them."""

import torch
from torch import Tensor, nn

from sonde.core import Inputs, Model
from sonde.data import open_inputs
from sonde_studies._separation import area
from sonde_studies.arms import note
from sonde_studies.worlds.learning import accuracy

TARGET, TRAIN, CLEAN, STEPS, BATCH, RATE = 7, 1100, 300, 150, 128, 0.01


def triggered(x: Tensor) -> Tensor:
    """Return images with the trigger, a white corner."""
    new = x.clone()
    new[..., -3:, -3:] = 1.0
    return new


def clean_images(model: Model, x: Tensor, label: Tensor) -> Inputs:
    """Return the clean images for the search."""
    part = slice(TRAIN, TRAIN + CLEAN)
    rows = zip(x[part], label[part].tolist(), strict=True)
    return open_inputs(model, [{"input": row, "label": kind} for row, kind in rows])


def stand(net: nn.Module, x: Tensor, label: Tensor) -> tuple[float, float]:
    """Return the accuracy, and the fraction of other classes' images that the trigger flips."""
    return accuracy(net, x, label), called(net, triggered(x[label != TARGET]))


@torch.no_grad()
def called(net: nn.Module, x: Tensor) -> float:
    """Return the fraction of images classified as the target."""
    return float((net(x).argmax(1) == TARGET).double().mean())


@torch.no_grad()
def surer_of(net: nn.Module, bad: Tensor, clean: Tensor) -> float:
    """Return the AUROC of the net's confidence, which should be higher for triggered images."""
    return area(*(net(x).softmax(1).amax(1) for x in (clean, bad)))


def trained(x: Tensor, label: Tensor, seed: int, tiny: bool) -> nn.Module:
    """Return a small net with batch norm."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        first = (nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        second = (nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU())
        net = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(512, 10))
        note(rows=len(x))
        optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
        for _ in range(20 if tiny else STEPS):
            chosen = torch.randint(len(x), (BATCH,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), label[chosen]).backward()
            optimiser.step()
    return net.eval()
