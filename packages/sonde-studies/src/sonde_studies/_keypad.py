"""Boards of 4 x 4 keys with a digit on each key, so that parts can be displaced.

Eight digits and their negatives make 16 looks; the two others are what was never seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from sonde_studies._digits import pixels
from sonde_studies.arms import note

PLACES, LOOKS, KEY = 16, 8, 8
STEPS, RATE = 200, 3e-3


class KeyNet(nn.Module):
    """A net that sees each key by itself, so that a moved key looks like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Sequential(nn.Conv2d(1, 64, KEY, KEY), nn.ReLU(), nn.Conv2d(64, 32, 1))
        self.head = nn.Conv2d(32, PLACES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the type logits of each key of boards (row, 1, 32, 32): (row, type, 4, 4)."""
        return self.head(torch.relu(self.keys(x)))


@dataclass(frozen=True)
class Keypads:
    """A net that recognises keys, boards to fit on and to test on, and the changed positions.

    Parameters
    ----------
    fit, usual, clean : Tensor (board, 1, 32, 32)
        Usual ones; ``clean`` are those that are changed.
    displaced, odd : Tensor (board, 1, 32, 32)
        With one key that shows another place's usual digit, or a digit that no place shows.
    shuffled : Tensor (board, 1, 32, 32)
        With every key at another place.
    planted : Tensor (board, place)
        Which key was changed.
    """

    model: KeyNet
    fit: Tensor
    usual: Tensor
    clean: Tensor
    displaced: Tensor
    odd: Tensor
    shuffled: Tensor
    planted: Tensor


def keypads(seed: int, n_fit: int, n_test: int) -> Keypads:
    """Draw boards; training boards use other digit images than test boards."""
    draw = np.random.default_rng(seed)
    x, digit = pixels()
    shown = draw.permutation(10)
    halves = np.array_split(draw.permutation(len(x)), 2)
    first, second = ([half[digit[half] == d] for d in shown] for half in halves)
    clean, spare = (_keys(draw, n_test, x, second) for _ in range(2))
    board = torch.arange(n_test)
    at = torch.from_numpy(draw.integers(PLACES, size=n_test))
    source = (at + torch.from_numpy(draw.integers(1, PLACES, size=n_test))) % PLACES
    displaced, odd = clean.clone(), clean.clone()
    displaced[board, at] = spare[board, source]
    new = x[draw.choice(np.concatenate(second[LOOKS:]), n_test)]
    odd[board, at] = torch.where(at[:, None] < LOOKS, new, 1 - new)
    shift = int(draw.integers(1, PLACES))
    return Keypads(
        _trained(seed, x, first),
        _board(_keys(draw, n_fit, x, first)),
        _board(_keys(draw, n_test, x, second)),
        _board(clean),
        _board(displaced),
        _board(odd),
        _board(clean.roll(shift, 1)),
        functional.one_hot(at, PLACES).bool(),
    )


def _keys(draw: np.random.Generator, n: int, x: Tensor, pools: list[np.ndarray]) -> Tensor:
    shown = [x[draw.choice(pool, n)] for pool in pools[:LOOKS]]
    return torch.stack([*shown, *(1 - keys for keys in shown)], 1)


def _board(keys: Tensor) -> Tensor:
    return rearrange(keys, "n (r c) (h w) -> n 1 (r h) (c w)", r=4, h=KEY)


@torch.enable_grad()
def _trained(seed: int, x: Tensor, pools: list[np.ndarray]) -> KeyNet:
    """Return a net trained to recognise the 16 key types, key by key."""
    model = KeyNet()
    each = [torch.from_numpy(pool) for pool in pools[:LOOKS]]
    look = torch.cat([torch.full((len(pool),), i) for i, pool in enumerate(each)])
    known = x[torch.cat(each)].reshape(-1, 1, KEY, KEY)
    known, look = torch.cat([known, 1 - known]), torch.cat([look, look + LOOKS])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    note(rows=len(known))
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimiser.zero_grad()
        functional.cross_entropy(model(known)[:, :, 0, 0], look).backward()
        optimiser.step()
    return model.eval()
