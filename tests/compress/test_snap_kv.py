"""Tokens that the end of the prompt attends to stay, with their neighbours."""

import pytest
import torch

from compress.cache_case import N_TOKENS, attentions, best, kept
from sonde.compress import SnapKV
from sonde.core import CachedTokens, InputError

WINDOW = set(range(N_TOKENS - 4, N_TOKENS))


@pytest.mark.truth("the model's own attentions of the window, pooled by a loop")
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_what_the_window_attends_to_stays_with_its_neighbours(pool):
    received = attentions()[:, -4:].mean(1)
    pooled = torch.zeros_like(received)
    for token in range(N_TOKENS - 4):  # the window itself is no neighbour
        near = received[:, max(token - 1, 0) : min(token + 2, N_TOKENS - 4)]
        pooled[:, token] = near.mean(1) if pool == "mean" else near.amax(1)

    assert kept(SnapKV(8, window=4, kernel=3, pool=pool)) == best(pooled, 8, WINDOW)


def test_empty_slots_are_no_neighbours():
    index = torch.tensor([[[-1, -1, 0, 1, 2, 3, 4]]])
    received = torch.tensor([[[0.0, 0.0, 0.4, 0.1, 0.2, 0.2, 0.1]]])
    seen = CachedTokens(index, torch.tensor([5]), torch.tensor([3]), received)

    found = SnapKV(3, window=1, kernel=3).score(received, received, seen)

    expected = torch.tensor([0.25, 0.7 / 3, 0.5 / 3, 0.2, torch.inf])
    torch.testing.assert_close(found[0, 0, 2:].float(), expected)


def test_an_even_kernel_is_refused():
    with pytest.raises(InputError, match="an odd kernel, got window=4, kernel=2"):
        SnapKV(8, window=4, kernel=2)
