"""Shared steps against every choice."""

from itertools import combinations

import pytest
import torch

from sonde.compress import share_steps
from sonde.core import InputError


def kept(similarity, starts):
    last, total = 0, 0.0
    for step in range(len(similarity)):
        last = step if step in starts else last
        total += float(similarity[last, step])
    return total


@pytest.mark.truth("every choice of steps")
@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_the_choice_is_the_best_of_all(k):
    draw = torch.Generator().manual_seed(k)
    similarity = torch.rand(9, 9, generator=draw, dtype=torch.float64) * 2 - 0.7
    best = max(kept(similarity, (0, *some)) for some in combinations(range(1, 9), k - 1))
    starts, value = share_steps(similarity, k)
    assert len(starts) == k
    assert starts[0] == 0
    assert value == pytest.approx(best)
    assert kept(similarity, starts) == pytest.approx(best)


@pytest.mark.truth("the handbook's matrix: (0, 2, 5) keeps 6.904929, even steps 6.360365")
def test_the_printed_example():
    j, step = torch.arange(8.0).double()[:, None], torch.arange(8.0).double()
    similarity = torch.exp(-((step - j) ** 2) / (2 * (1 + j / 2) ** 2))
    assert share_steps(similarity, 3) == ([0, 2, 5], pytest.approx(6.904929, abs=1e-6))
    assert kept(similarity, (0, 3, 6)) == pytest.approx(6.360365, abs=1e-6)


@pytest.mark.parametrize(
    ("table", "k", "said"),
    [(torch.eye(3), 4, "k from 1 to its 3"), (torch.full((2, 2), torch.nan), 1, "finite")],
)
def test_what_is_refused(table, k, said):
    with pytest.raises(InputError, match=said):
        share_steps(table, k)
