"""Budgets of tokens: sums, caps by bisection, order, pooled segments."""

import pytest
import torch

from sonde.compress import shortened, token_budget
from sonde.core import InputError


@pytest.mark.truth("water-filling by bisection on the level")
@pytest.mark.parametrize("seed", range(5))
def test_shares_are_those_of_water_filling(seed):
    draw = torch.Generator().manual_seed(seed)
    relevance = torch.rand(12, generator=draw).double()
    lengths = torch.randint(3, 40, (12,), generator=draw)
    budget = int(0.6 * lengths.sum())
    low, high = 0.0, 1e6
    for _ in range(200):
        level = (low + high) / 2
        full = float(torch.minimum(level * relevance, lengths.double()).sum()) < budget
        low, high = (level, high) if full else (low, level)
    wanted = torch.minimum(low * relevance, lengths.double())
    found = token_budget(relevance, lengths, budget)
    assert int(found.sum()) == budget
    assert float((found - wanted).abs().max()) < 1
    assert bool((found <= lengths).all())
    part = wanted - wanted.floor()
    up, capped = found > wanted, wanted == lengths
    assert float(part[up].min()) >= float(part[~up & ~capped].max())  # the largest fractions


def test_more_relevant_segments_never_get_less_and_equal_ones_alike():
    relevance = torch.tensor([0.1, 0.5, 0.2, 0.9])
    found = token_budget(relevance, torch.full((4,), 100), 37, temperature=0.3)
    assert found[relevance.argsort()].tolist() == sorted(found.tolist())
    even = token_budget(torch.ones(3), torch.full((3,), 9), 10)
    assert even.tolist() == [4, 3, 3]
    assert token_budget(torch.zeros(2), torch.tensor([2, 6]), 4).tolist() == [1, 3]


@pytest.mark.truth("means of neighbours by hand")
def test_a_segment_is_pooled_to_its_tokens():
    x = torch.arange(6.0)[:, None]
    found = shortened(x, torch.tensor([4, 2]), torch.tensor([2, 1]))
    assert found.flatten().tolist() == [0.5, 2.5, 4.5]


@pytest.mark.parametrize(
    ("relevance", "budget", "said"),
    [([-1.0, 1.0], 2, "of 0 or more"), ([1.0, 1.0], 9, "at most the 8 tokens")],
)
def test_what_is_refused(relevance, budget, said):
    with pytest.raises(InputError, match=said):
        token_budget(torch.tensor(relevance), torch.tensor([4, 4]), budget)
