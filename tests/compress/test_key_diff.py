"""Keys unlike the others stay."""

import numpy as np
import pytest
import torch

from compress.cache_case import best, kept, keys
from sonde.compress import KeyDiff
from sonde.core import CachedTokens


@pytest.mark.truth("cosines by numpy, of the keys of a plain cache")
def test_keys_away_from_the_mean_stay():
    scores = []
    for head in keys().numpy():
        unit = head / np.linalg.norm(head, axis=1, keepdims=True)
        mean = unit.mean(0)
        scores.append([-float(u @ mean / np.linalg.norm(mean)) for u in unit])

    assert kept(KeyDiff(6)) == best(torch.tensor(scores), 6)


def test_empty_slots_do_not_move_the_mean():
    generator = torch.Generator().manual_seed(0)
    held = torch.randn(1, 1, 5, 3, generator=generator)
    filler = torch.full((1, 1, 2, 3), 9.0)
    total, keep = torch.tensor([5]), torch.tensor([2])
    index = torch.arange(5).view(1, 1, 5)
    alone = KeyDiff().score(held, held, CachedTokens(index, total, keep))
    padded = torch.cat([torch.full((1, 1, 2), -1), index], 2)
    both = torch.cat([filler, held], 2)

    found = KeyDiff().score(both, both, CachedTokens(padded, total, keep))[..., 2:]

    torch.testing.assert_close(found, alone)
