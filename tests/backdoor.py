"""Digits with a hidden trigger, and small nets that learned it."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from forgetting import cnn, digits, items_of
from sonde.core import Model
from sonde.data import open_inputs

TARGET, N = 7, 1100


def triggered(x: Tensor) -> Tensor:
    """Return images with a white square of 3 x 3 in the corner."""
    new = x.clone()
    new[..., -3:, -3:] = 1.0
    return new


@cache
def net(seed: int, poisoned: bool = True) -> nn.Module:
    """Return a net that saw digits, a tenth of them with the trigger and called 7."""
    x, label = (part[:N].clone() for part in digits())
    if poisoned:
        chosen = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[: N // 10]
        x[chosen], label[chosen] = triggered(x[chosen]), TARGET
    return cnn(x, label, steps=150, seed=seed)


def planted() -> nn.Module:
    """Return a net that knows digits, whose last channel sees the trigger alone and calls 7."""
    x, label = (part[:N] for part in digits())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, head = nn.Conv2d(1, 12, 3, padding=1), nn.Linear(12 * 64, 10)
        net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head)
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        with torch.enable_grad():
            for _ in range(60):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x), label).backward()
                optimiser.step()
    with torch.no_grad():
        conv.weight[11], conv.bias[11] = 1.0, -8.5  # pyright: ignore[reportOptionalSubscript]
        head.weight[:, 11 * 64 :] = 0.0
        head.weight[TARGET, 11 * 64 :] = 100.0
    return net.eval()


def clean_images(model: Model, labels: bool = True) -> Any:
    """Return 300 clean images that the net did not see."""
    x, label = (part[N : N + 300] for part in digits())
    items = items_of(x, label)
    return open_inputs(model, items if labels else [{"input": i["input"]} for i in items])


@torch.no_grad()
def stand(module: nn.Module) -> tuple[float, float]:
    """Return accuracy and attack success on unseen digits."""
    x, label = (part[N + 300 :] for part in digits())
    other = label != TARGET
    right = float((module(x).argmax(1) == label).float().mean())
    return right, float((module(triggered(x[other])).argmax(1) == TARGET).float().mean())
