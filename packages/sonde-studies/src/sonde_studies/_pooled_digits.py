"""Digits in sixteen patches, read from any number of mean-pooled tokens."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.compress import shortened
from sonde_studies.worlds.learning import drawn, minimise, squares_of

TOKENS = 16


def _spread(tokens: Tensor) -> Tensor:
    """Return sixteen tokens from fewer, each repeated over its positions."""
    return nn.functional.interpolate(tokens.T[None], TOKENS).flatten()


def reader_of(x: Tensor, label: Tensor, seed: int, steps: int) -> nn.Module:
    """Return a net that classifies digits from patches pooled to any number of tokens."""
    patches = squares_of(x, 2).transpose(1, 2)
    pooled = [nn.functional.adaptive_avg_pool1d(patches, n + 1) for n in range(TOKENS)]
    shown = torch.stack([nn.functional.interpolate(p, TOKENS).flatten(1) for p in pooled])
    net = drawn(lambda: nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)), seed)

    def loss(rows: Tensor) -> Tensor:
        size = torch.randint(TOKENS, rows.shape)
        return cross_entropy(net(shown[size, rows]), label[rows])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed)
    return net.eval()


@torch.no_grad()
def digits_read(reader: nn.Module, states: Tensor, kept: Tensor) -> Tensor:
    """Return the digit read from each frame's remaining tokens; -1 if it has none."""
    left = shortened(states, torch.full((len(kept),), TOKENS), kept)[:, : 64 // TOKENS]
    parts = [_spread(part) if len(part) else None for part in left.split(kept.tolist())]
    said = [-1 if part is None else int(reader(part).argmax()) for part in parts]
    return torch.tensor(said)
