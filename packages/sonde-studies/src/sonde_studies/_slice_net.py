"""A net that reads the slices of a stack one by one, then together."""

import torch
from torch import Tensor, nn

from sonde.layers import DeformableAttention
from sonde_studies._stacks import SIZES

DIM = 32


class SliceNet(nn.Module):
    """A perceptron on each slice, and a layer of attention over the slices of a stack.

    Parameters
    ----------
    deformable : bool, default=False
        Attention at learned positions along the slices, in place of attention to all slices.
    """

    def __init__(self, deformable: bool = False) -> None:
        super().__init__()
        self.slice = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, DIM))
        self.mixing = _Mixing(deformable)

    def forward(self, stacks: Tensor) -> tuple[Tensor, Tensor]:
        """Return states of slices (row, slice, dim) and of stacks (row, dim)."""
        states = self.slice(stacks)
        return states, self.mixing(states).mean(1)


class _Mixing(nn.Module):
    def __init__(self, deformable: bool) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(len(SIZES), DIM) / 4)
        self.layer = _Deformable() if deformable else _layer()

    def forward(self, states: Tensor) -> Tensor:
        return self.layer(states + self.place)


def _layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True)


class _Deformable(nn.Module):
    """A layer of a transformer whose attention is deformable."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, rest = DeformableAttention(DIM, 4, 4), _layer()
        self.norms = nn.ModuleList([rest.norm1, rest.norm2])
        self.mlp = nn.Sequential(rest.linear1, nn.ReLU(), rest.linear2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.attention(x))
        return self.norms[1](x + self.mlp(x))
