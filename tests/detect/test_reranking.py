import itertools
import math

import pytest
import torch

from sonde.core.errors import InputError
from sonde.detect import rerank, top_majority


@pytest.mark.truth("every order of the votes, counted by hand")
def test_order_within_prompts():
    scores = [3.0, 1.0, 2.0, math.inf, 0.0, 1.0]
    assert rerank(scores).tolist() == [4, 1, 5, 2, 0, 3]
    prompts = ["q", "p", "q", "p", "q", "p"]
    assert rerank(scores, prompts).tolist() == [4, 2, 0, 1, 5, 3]
    assert rerank(torch.tensor(scores), torch.tensor([0] * 6).tolist()).tolist()[-1] == 3


@pytest.mark.truth("votes counted by hand")
def test_majority_of_the_best():
    scores, answers = [0.0, 1.0, 2.0, 3.0, 4.0], ["a", "b", "b", "c", "c"]
    assert top_majority(scores, answers, k=1) == {None: "a"}
    assert top_majority(scores, answers, k=2) == {None: "a"}  # a tie: the lower score
    assert top_majority(scores, answers, k=3) == {None: "b"}
    assert top_majority(scores, answers, k=5) == {None: "b"}  # two each: the lower mean
    assert top_majority(scores, answers, k=99) == {None: "b"}


@pytest.mark.truth("the same votes in every order of arrival")
def test_order_of_arrival_does_not_matter():
    rows = [(0.5, "x"), (1.0, "y"), (1.5, "y"), (0.75, "z")]
    for order in itertools.permutations(rows):
        scores, answers = zip(*order, strict=True)
        assert top_majority(scores, answers, k=4) == {None: "y"}
        assert top_majority(scores, answers, k=2) == {None: "x"}


@pytest.mark.truth("worked out by hand")
def test_prompts_vote_apart_and_none_has_no_vote():
    scores = [0.0, 1.0, 2.0, 0.0, 5.0]
    answers = [None, 7, 7, None, None]
    assert top_majority(scores, answers, ["p", "p", "p", "q", "q"], k=3) == {"p": 7, "q": None}


def test_a_good_score_beats_the_plain_majority():
    scores = [0.0, 0.1, 5.0, 6.0, 7.0]
    answers = ["right", "right", "wrong", "wrong", "wrong"]
    assert top_majority(scores, answers, k=5)[None] == "wrong"
    assert top_majority(scores, answers, k=2)[None] == "right"


def test_errors_say_what_is_wrong():
    with pytest.raises(InputError, match="rerank: expected scores without NaN, got 1 scores, 1 of"):
        rerank([math.nan])
    with pytest.raises(InputError, match="rerank: expected scores without NaN, got 0 scores"):
        rerank([])
    with pytest.raises(InputError, match="expected a prompt for each of 2 scores, got 1"):
        rerank([0.0, 1.0], ["p"])
    with pytest.raises(InputError, match="got 1 answers and k=1"):
        top_majority([0.0, 1.0], ["a"], k=1)
    with pytest.raises(InputError, match="got 1 answers and k=0"):
        top_majority([0.0], ["a"], k=0)
