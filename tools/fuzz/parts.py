# ruff: noqa: D102  # what a forward does stands at its class
"""Modules that stand at the head of every model that is drawn: odd returns, views, buffers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class States:
    """A tensor beside something else."""

    states: Tensor
    count: int


class Halve(nn.Module):
    """Returns a new tensor."""

    def forward(self, x):
        return x / 2


class Add(nn.Module):
    """Changes what it got and returns it."""

    def forward(self, x):
        x += 0.5
        return x


class Same(nn.Module):
    """Returns a view of what it got."""

    def forward(self, x):
        return x.view_as(x)


class Permute(nn.Module):
    """Returns a view with the axes in another order."""

    def __init__(self, *order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x.permute(self.order)


class Pair(nn.Module):
    """Returns a tuple, the tensor first."""

    def forward(self, x):
        return x * 0.5, None


class Second(nn.Module):
    """Returns a tuple, the tensor second."""

    def forward(self, x):
        return x.sum(), x * 0.5


class Named(nn.Module):
    """Returns a dictionary with an integer before the tensor."""

    def forward(self, x):
        return {"count": torch.tensor(3), "states": x + 1}


class Record(nn.Module):
    """Returns a dataclass."""

    def forward(self, x):
        return States(x - 1, 3)


class Nested(nn.Module):
    """Returns the tensor in a dictionary in a list."""

    def forward(self, x):
        return [None, {"states": x * 2, "more": (x,)}]


class Buffered(nn.Module):
    """Returns a piece of its own buffer, which the next call writes over."""

    def __init__(self, *shape):
        super().__init__()
        self.out: Tensor
        self.register_buffer("out", torch.zeros(64, *shape), persistent=False)

    def forward(self, x):
        return torch.mul(x, 1.25, out=self.out[: len(x)])
