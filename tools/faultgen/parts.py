"""Modules of drawn nets. What a fault in the forward can change is an attribute or a module."""

import random
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

PoolKind = Literal["mean", "max", "first", "last"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Tanh": nn.Tanh,
    "SiLU": nn.SiLU,
    "ELU": nn.ELU,
}


class Pool(nn.Module):
    """Pool states over positions, those under the mask alone."""

    def __init__(self, kind: PoolKind) -> None:
        super().__init__()
        self.kind: PoolKind = kind
        self.uses_mask = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return one state for each row."""
        kept = torch.ones_like(x[..., 0]) if mask is None or not self.uses_mask else mask.to(x)
        if self.kind == "mean":
            return (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)
        if self.kind == "max":
            return x.masked_fill(kept[..., None] == 0, -1e4).amax(1)
        if self.kind == "first":
            return x[:, 0]
        last = kept.sum(1).long().clamp(min=1) - 1
        return x[torch.arange(len(x)), last]


class Flat(nn.Module):
    """Flatten all axes but the row, in one of two orders."""

    def __init__(self) -> None:
        super().__init__()
        self.channels_first = True

    def forward(self, x: Tensor) -> Tensor:
        """Return one vector for each row."""
        x = x if self.channels_first else x.movedim(1, -1)
        return x.flatten(1)


class Drop(nn.Module):
    """Dropout that can be left on."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.always = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, some of it set to 0 while training."""
        return nn.functional.dropout(x, self.p, self.training or self.always)


class Standardise(nn.Module):
    """Subtract the mean and divide by the standard deviation of the training rows."""

    mean: Tensor
    std: Tensor

    def __init__(self, x: Tensor, axis: int) -> None:
        super().__init__()
        rest = [i for i in range(x.ndim) if i != axis]
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        self.register_buffer("mean", x.mean(rest).reshape(shape))
        self.register_buffer("std", x.std(rest).clamp(min=1e-6).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised inputs."""
        return (x - self.mean) / self.std


class Codes(nn.Module):
    """An embedding for each column of codes, side by side."""

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(n, dim) for n in sizes])

    def forward(self, codes: Tensor) -> Tensor:
        """Return states (row, column, dim)."""
        return torch.stack([t(codes[:, i]) for i, t in enumerate(self.tables)], 1)


def norm(kind: str, dim: int) -> nn.Module:
    """Return a norm of states whose last axis, or whose only axis but the row, is `dim`."""
    made: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm1d(dim),
        "layer": lambda: nn.LayerNorm(dim),
        "group": lambda: nn.GroupNorm(4, dim),
        "rms": lambda: nn.RMSNorm(dim),
        "none": nn.Identity,
    }
    return made[kind]()


class Block(nn.Module):
    """Two linear layers around an activation, with or without a residual path."""

    def __init__(self, dim: int, kind: str, act: str, drop: float, skip: bool) -> None:
        super().__init__()
        self.norm_a = norm(kind, dim)
        self.fc_a = nn.Linear(dim, dim)
        self.act_a = ACTIVATIONS[act]()
        self.drop_a = Drop(drop)
        self.fc_b = nn.Linear(dim, dim)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Return states of the shape of `x`."""
        y = self.fc_b(self.drop_a(self.act_a(self.fc_a(self.norm_a(x)))))
        return x + y if self.skip else y


class Attention(nn.Module):
    """Attention over positions with a residual path, then two linear layers with another one."""

    def __init__(self, dim: int, kind: str, act: str) -> None:
        super().__init__()
        self.norm_a = norm(kind, dim)
        self.attn_a = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.norm_b = norm(kind, dim)
        self.fc_a = nn.Linear(dim, 2 * dim)
        self.act_a = ACTIVATIONS[act]()
        self.fc_b = nn.Linear(2 * dim, dim)
        self.skip = True
        self.uses_mask = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return states of the shape of `x`."""
        hidden = None if mask is None or not self.uses_mask else mask == 0
        z = self.norm_a(x)
        y = self.attn_a(z, z, z, key_padding_mask=hidden, need_weights=False)[0]
        x = x + y if self.skip else y
        y = self.fc_b(self.act_a(self.fc_a(self.norm_b(x))))
        return x + y if self.skip else y


class Trunk(nn.Module):
    """Blocks after a first linear layer, and the layer that answers."""

    def __init__(self, n_in: int, dim: int, n_out: int, draw: random.Random) -> None:
        super().__init__()
        kind = draw.choice(("batch", "layer", "group", "rms", "none"))
        act, drop = draw.choice(list(ACTIVATIONS)), draw.choice((0.0, 0.1))
        skip, n = draw.random() < 0.6, draw.choice((1, 2, 3))
        self.fc_in = nn.Linear(n_in, dim)
        self.act_in = ACTIVATIONS[act]()
        self.blocks = nn.ModuleList([Block(dim, kind, act, drop, skip) for _ in range(n)])
        self.fc_out = nn.Linear(dim, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return answers (row, n_out)."""
        x = self.act_in(self.fc_in(x))
        for block in self.blocks:
            x = block(x)
        return self.fc_out(x)


def last_linear(net: nn.Module) -> nn.Linear:
    """Return the layer that answers: ``fc_out`` of the net or of its trunk."""
    return cast("nn.Linear", next(m for n, m in net.named_modules() if n.endswith("fc_out")))
