"""A small U-Net with slots for modules: at its bottom, between its halves, over its levels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 16


class UNet(nn.Module):
    """A U-Net of three levels with two convolutions each.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    deep : nn.Module, optional
        Applied to the deepest maps (row dim high wide).
    meeting : nn.Module, optional
        Takes the shallow and the deep maps of the second level and gives both back.
    across : nn.Module, optional
        Takes the maps of the three levels, fine to coarse, and gives them back.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        deep: nn.Module | None = None,
        meeting: nn.Module | None = None,
        across: nn.Module | None = None,
    ) -> None:
        super().__init__()
        sizes = [(inputs, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)]
        self.down = nn.ModuleList(_block(a, b) for a, b in sizes)
        self.up = nn.ModuleList(_block(2 * WIDTH, WIDTH) for _ in range(2))
        self.last = nn.Conv2d(WIDTH, outputs, 1)
        self.deep, self.meeting = deep or nn.Identity(), meeting or Pair()
        self.across = across or Pair()

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the size of the input."""
        return self.joined(*self.levels(x))

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps on the way down, fine to coarse, before the modules."""
        fine = self.down[0](x)
        middle = self.down[1](functional.max_pool2d(fine, 2))
        return fine, middle, self.down[2](functional.max_pool2d(middle, 2))

    def joined(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Return the output for the maps of the levels."""
        fine, middle, coarse = self.across(fine, middle, self.deep(coarse))
        middle = self.up[0](torch.cat(self.meeting(middle, doubled(coarse)), 1))
        return self.last(self.up[1](torch.cat([fine, doubled(middle)], 1)))


class Pair(nn.Module):
    """Returns its maps unchanged, or one of them as zeros."""

    def __init__(self, without: int | None = None) -> None:
        super().__init__()
        self.without = without

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Return the maps."""
        return tuple(x * 0 if i == self.without else x for i, x in enumerate(maps))


class Mixed(nn.Module):
    """A residual map over all channels, initialised to zero: the baseline of a module."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, *maps: Tensor) -> Any:
        """Return one map, or two that are mixed with each other."""
        x = torch.cat(maps, 1)
        x = x + self.out(torch.relu(self.first(x)))
        return x if len(maps) == 1 else tuple(x.chunk(len(maps), 1))


class ShiftedWithin(nn.Module):
    """The maps of ``Exchange("shift", WIDTH)``, whose channels move within their own level.

    A quarter of the channels moves down by one position, a quarter up; a 1 x 1 map, initialised to
    zero, is added to each level.

    Parameters
    ----------
    n_levels : int
    """

    def __init__(self, n_levels: int) -> None:
        super().__init__()
        maps = [nn.Conv2d(WIDTH, WIDTH, 1, bias=False) for _ in range(n_levels)]
        for part in maps:
            nn.init.zeros_(part.weight)
        self.maps = nn.ModuleList(maps)

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        """Return levels (row dim high wide) of the same size."""
        return tuple(x + part(self.moved(x)) for x, part in zip(levels, self.maps, strict=True))

    def moved(self, x: Tensor) -> Tensor:
        """Return the maps with two quarters of their channels moved by one position."""
        down, up, rest = x.split([WIDTH // 4, WIDTH // 4, WIDTH - 2 * (WIDTH // 4)], 1)
        return torch.cat([down.roll(1, 2), up.roll(-1, 2), rest], 1)


class OverTokens(nn.Module):
    """Applies a layer for tokens (row token dim) to maps (row dim high wide)."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same size."""
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def n_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


def doubled(x: Tensor) -> Tensor:
    """Return maps of twice the height and width."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
