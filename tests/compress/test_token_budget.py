"""Budgets of tokens: sums, caps by bisection, order, pooled segments."""

import pytest
import torch

from sonde.compress import question_parts, segment_relevance, shortened, token_budget
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


@pytest.mark.truth("the rest, shared without a floor over the room that is left")
def test_a_floor_comes_first():
    relevance, lengths = torch.tensor([3.0, 0.0, 1.0, 0.5]), torch.tensor([9, 7, 2, 8])
    found = token_budget(relevance, lengths, 17, floor=3)
    rest = token_budget(relevance, torch.tensor([6, 4, 0, 5]), 17 - 11)
    assert torch.equal(found, rest + torch.tensor([3, 3, 2, 3]))
    with pytest.raises(InputError, match="at least 11, which floor=3 needs"):
        token_budget(relevance, lengths, 10, floor=3)


@pytest.mark.truth("a loop over segments and parts, by cosine_similarity")
def test_relevance_is_the_cosine_to_a_segments_mean():
    draw = torch.Generator().manual_seed(3)
    states, parts = torch.randn(9, 4, generator=draw), torch.randn(3, 4, generator=draw)
    lengths = torch.tensor([2, 4, 3])
    cos = torch.zeros(3, 3)
    for i, (a, b) in enumerate(((0, 2), (2, 6), (6, 9))):
        for j in range(3):
            cos[i, j] = torch.cosine_similarity(states[a:b].mean(0), parts[j], dim=0)
    assert (cos.amax(1) < 0).any() or (cos.mean(1) < 0).any()
    largest, mean = cos.amax(1).clamp(min=0), cos.mean(1).clamp(min=0)
    assert torch.allclose(segment_relevance(states, lengths, parts), largest, atol=1e-6)
    assert torch.allclose(segment_relevance(states, lengths, parts, "mean"), mean, atol=1e-6)
    with pytest.raises(InputError, match="sum to 9 tokens"):
        segment_relevance(states, torch.tensor([2, 6]), parts)


@pytest.mark.truth("parts written down with the questions that they fill")
def test_a_question_is_parted_at_the_words_that_most_questions_have():
    names = ["grey cup", "dog", "old red door", "lamp", "cat", "blue car"]
    pairs = [(a, b) for a in names for b in names if a != b]
    asked = [f"Which way is it from the {a} to the {b}?" for a, b in pairs]
    assert [question_parts(q, asked) for q in asked] == [list(pair) for pair in pairs]
    assert question_parts("Is it the way?", asked, 0.4) == ["is it the way"]
    assert question_parts("Dog, cat!", []) == ["dog cat"]
