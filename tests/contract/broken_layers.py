"""Layers with one planted fault each."""

from typing import ClassVar

import torch
from torch import nn

from sonde.layers import Layer


class Mixes(Layer):
    """A residual mean over the tokens in sight, with a fault."""

    examples: ClassVar[tuple[dict, ...]] = ({},)
    layout: ClassVar[tuple[str, ...]] = ("row token dim",)
    symmetry = "permutation"

    def __init__(self, fault="", dim=4):
        super().__init__()
        self.fault, self.dim = fault, dim
        self.map = nn.Linear(dim, dim, bias=False)
        if fault != "starts":
            nn.init.zeros_(self.map.weight)
        self.late = None
        self.kept = {"dim": 1.0}

    def forward(self, x, mask=None):
        if mask is None or self.fault == "padding":
            mask = torch.ones(x.shape[:2], dtype=torch.bool)
        share = mask / mask.sum(1, keepdim=True)
        mean = torch.einsum("rt,rtd->rd", share.to(x), x)
        if self.fault == "first token":
            mean = mean + x[:, 0]
        if self.fault == "batch":
            mean = mean - x.mean((0, 1))
        if self.fault == "random":
            mean = mean + torch.randn_like(mean)
        if self.fault == "in place":
            x.add_(1.0)
        if self.fault == "learns":
            self.map.weight.data += x.mean()
        if self.fault == "late" and self.late is None:
            self.late = nn.Parameter(x.mean((0, 1)).detach())
        if self.fault == "coarse":
            mean = mean * (1.0 + 2.0 * (mean.dtype == torch.bfloat16))
        if self.fault == "half":
            peak = x.square().amax((1, 2)).unsqueeze(-1)
            mean = mean * (peak / peak)
        if self.fault == "forgets":
            mean = mean * self.kept["dim"]
        change = torch.tanh(self.map(mean)).unsqueeze(1)
        return x + (change.detach() if self.fault == "detached" else change)

    def __call__(self, *args, **named):
        if self.fault == "unchecked" and not args:
            return self.forward(**named)
        return super().__call__(*args, **named)

    def flops(self, *shapes):
        return super().flops(*shapes) + (self.fault == "flops")

    @property
    def n_parameters(self):
        return super().n_parameters + (self.fault == "numbers")


class Lags(Layer):
    """A residual copy of the step before, or of a step that depends on the place."""

    layout: ClassVar[tuple[str, ...]] = ("row time dim",)
    symmetry = "translation"
    causal = True

    def __init__(self, fault="", dim=4):
        super().__init__()
        self.fault, self.dim = fault, dim
        self.tap, self.n = nn.Parameter(torch.zeros(dim)), 0

    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        if self.fault == "ahead":
            before = before - x.mean(1, keepdim=True)
        if self.fault == "counts":
            self.n += 1
            before = before * self.n
        if self.fault == "place":
            before = before * torch.arange(x.shape[1]).reshape(-1, 1)
        return x + self.tap * before


def forgetful():
    """A layer one of whose numbers is not in its state dict."""
    made = Mixes("forgets")
    made.kept["dim"] = 3.0
    return made
