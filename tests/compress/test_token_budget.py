"""Budgets of tokens: sums, caps by bisection, order, pooled segments."""

import inspect
import math
from typing import Any

import numpy as np
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


def untyped(function: Any) -> Any:
    """Return a function without the check of types, which users' calls do not have."""
    return inspect.unwrap(function)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"relevance": [-1.0, 1.0]}, "of 0 or more for each segment, got -1 for segment 0"),
        ({"relevance": [0.2, math.inf]}, "finite relevance .* got inf for segment 1"),
        ({"relevance": [0.2, math.nan]}, "finite relevance .* got nan for segment 1"),
        ({"relevance": [1.0]}, r"for each of 2 lengths, got shape \(1,\)"),
        ({"relevance": torch.ones(2, 2)}, r"for each of 2 lengths, got shape \(2, 2\)"),
        ({"relevance": ["a", "b"]}, "relevance as numbers in an array"),
        ({"lengths": [[4, 4]]}, r"lengths in one dimension, .* got shape \(1, 2\)"),
        ({"relevance": [], "lengths": []}, r"lengths in one dimension, .* got shape \(0,\)"),
        ({"lengths": [9, -1]}, "lengths as whole numbers of 0 or more, got -1 for segment 1"),
        ({"lengths": [4.5, 4]}, "lengths as whole numbers of 0 or more, got 4.5 for segment 0"),
        ({"lengths": [4, math.inf]}, "lengths as whole numbers of 0 or more, got inf"),
        ({"budget": 9}, "at most the 8 tokens"),
        ({"budget": 2.5}, "budget as a whole number of tokens, 0 or more, got 2.5"),
        ({"budget": -1}, "budget as a whole number of tokens, 0 or more, got -1"),
        ({"floor": -3}, "floor as a whole number of tokens, 0 or more, got -3"),
        ({"floor": 0.5}, "floor as a whole number of tokens, 0 or more, got 0.5"),
        ({"temperature": 0}, "finite temperature above 0, got 0"),
        ({"temperature": -0.1}, "finite temperature above 0, got -0.1"),
        ({"temperature": math.nan}, "finite temperature above 0, got nan"),
        ({"temperature": math.inf}, "finite temperature above 0, got inf"),
        ({"temperature": "1"}, "finite temperature above 0, got '1'"),
    ],
)
def test_what_is_refused(change, said):
    given = {"relevance": torch.tensor([1.0, 0.5]), "lengths": torch.tensor([4, 4]), "budget": 2}
    assert token_budget(**given).tolist() == [1, 1]
    with pytest.raises(InputError, match=f"token_budget: expected .*{said}"):
        untyped(token_budget)(**(given | change))


def test_lists_and_arrays_are_as_good_as_tensors():
    relevance, lengths = [0.9, 0.1, 0.4], [5, 9, 2]
    wanted = token_budget(torch.tensor(relevance, dtype=torch.float64), torch.tensor(lengths), 8)
    assert wanted.tolist() == [5, 1, 2]
    found = untyped(token_budget)(np.array(relevance), np.array(lengths), np.int64(8))
    assert torch.equal(token_budget(relevance, lengths, 8), wanted)
    assert torch.equal(found, wanted)
    states, question = [[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0]]
    near = segment_relevance(np.array(states), [2, 1], question)
    torch.testing.assert_close(near, torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert shortened(torch.tensor(states), [2, 1], np.array([1, 0])).tolist() == [[1.0, 0.0]]
    assert shortened(torch.tensor(states), [2, 1], [0, 0]).shape == (0, 2)


@pytest.mark.truth("at low temperatures the segments are filled one after the other, best first")
@pytest.mark.parametrize("temperature", [1e-3, 1 / 710, 1e-9, 1e-320])
def test_low_temperatures_fill_the_best_segments_first(temperature):
    relevance, lengths = torch.tensor([0.2, 1.0, 0.0, 0.7]).double(), torch.tensor([6, 4, 9, 5])
    for budget in range(25):
        wanted, left = torch.zeros(4, dtype=torch.long), budget
        for i in (1, 3, 0, 2):
            wanted[i] = min(left, int(lengths[i]))
            left -= int(wanted[i])
        assert torch.equal(token_budget(relevance, lengths, budget, temperature), wanted)


def test_large_and_small_relevances_share_by_their_ratio():
    for scale in (1e-310, 1.0, 1e308):
        found = token_budget([1.5 * scale, 0.5 * scale, 0.0], [20, 20, 20], 16)
        assert found.tolist() == [12, 4, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"states": torch.full((3, 2), torch.nan)}, "finite states, got NaN.* in 3 of 3"),
        ({"states": torch.ones(3)}, r"\(token, dim\) .* got \(3,\) and \(1, 2\)"),
        ({"question": torch.tensor([[1.0, torch.inf]])}, "finite parts of the question.* 1 of 1"),
        ({"question": torch.ones(2)}, r"\(part, dim\) .* got \(3, 2\) and \(2,\)"),
        ({"question": torch.ones(1, 5)}, "of the same dim"),
        ({"question": torch.ones(0, 2)}, "of the same dim"),
        ({"lengths": [3, 0]}, "whole numbers of 1 or more, got 0 for segment 1"),
        ({"lengths": [1.5, 1.5]}, "whole numbers of 1 or more, got 1.5"),
        ({"combine": "sum"}, "combine as 'max' or 'mean', got 'sum'"),
    ],
)
def test_what_is_no_relevance(change, said):
    given = {"states": torch.ones(3, 2), "lengths": [2, 1], "question": torch.ones(1, 2)}
    assert segment_relevance(**given).shape == (2,)
    with pytest.raises(InputError, match=f"segment_relevance: expected .*{said}"):
        untyped(segment_relevance)(**(given | change))


def test_what_is_not_shortened_or_parted():
    states = torch.ones(3, 2)
    with pytest.raises(InputError, match="lengths that sum to 3 tokens"):
        shortened(states, [2, 2], [1, 1])
    for kept in ([1, 2], [1], [1, 1, 1]):
        with pytest.raises(InputError, match="at most its tokens"):
            shortened(states, [2, 1], kept)
    for given in ((["where is it?"], []), ("where is it?", "where is the dog?")):
        with pytest.raises(InputError, match="question_parts: expected a question as a text"):
            untyped(question_parts)(*given)


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
