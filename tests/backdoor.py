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


@cache
def clean_images(model: Model) -> Any:
    """Return 300 clean images with labels that the net did not see."""
    x, label = (part[N : N + 300] for part in digits())
    return open_inputs(model, items_of(x, label))


@torch.no_grad()
def stand(module: nn.Module) -> tuple[float, float]:
    """Return accuracy and attack success on unseen digits."""
    x, label = (part[N + 300 :] for part in digits())
    other = label != TARGET
    right = float((module(x).argmax(1) == label).float().mean())
    return right, float((module(triggered(x[other])).argmax(1) == TARGET).float().mean())
