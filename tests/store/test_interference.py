"""One user's data in another user's answers: planted leaks are found, to the bit, and no others."""

import numpy as np
import pytest
import torch

from sonde import InputError, StateError
from sonde.store import interference

STORED = {name: list(np.random.default_rng(i).normal(size=6 + i)) for i, name in enumerate("abc")}
OTHER = {name: [x + 1.0 for x in own] for name, own in STORED.items()}
ASKED = {"a": [0.2, 1.0], "b": [0.3], "c": []}


def means(near, least=0.0):
    """Return a pipeline whose readers see means of the data of those whom ``near`` names."""

    def pipeline(data):
        def answer(user, query):
            own = torch.tensor([x for name in near(user) for x in data[name]])
            return own.double().mean() * (query > least)

        return answer

    return pipeline


def test_an_answer_from_own_data_is_free_of_others_and_changes_with_the_own():
    found = interference(means(lambda user: user), STORED, OTHER, ASKED)
    assert found.leaks == {}
    assert found.used
    assert found.changed == {(r, o): float(r == o) for r in "ab" for o in "abc"}


@pytest.mark.truth("the planted leak: user b reads a's data for queries above a half, a reads b's")
def test_a_leak_is_named_with_reader_owner_and_share_of_the_answers():
    pipeline = means(lambda user: {"a": "ab", "b": "bb", "c": "c"}[user], least=0.5)
    found = interference(pipeline, STORED, OTHER, {"a": [0.2, 0.9, 1.0], "b": [0.9], "c": [1.0]})
    assert found.leaks == {("a", "b"): 2 / 3}
    both = {"a": {"a", "b"}, "b": {"b"}, "c": {"c"}}
    assert interference(pipeline, STORED, OTHER, ASKED, both).leaks == {}


def test_the_smallest_change_of_a_number_is_seen():
    def pipeline(data, size=2**-52):
        return lambda user, query: {"mean": [1.0 + size * (data["b"][0] > STORED["b"][0])]}

    assert interference(pipeline, STORED, {"b": OTHER["b"]}, {"a": [1.0]}).leaks == {
        ("a", "b"): 1.0
    }
    still = interference(lambda data: pipeline(data, 0.0), STORED, OTHER, ASKED)
    assert not still.used
    assert still.leaks == {}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.ones(2, dtype=torch.bfloat16), torch.tensor([1.0, 1.0078125]).bfloat16()),
        (np.array(["a", "b"]), np.array(["a", "c"])),
        ("ab", b"ab"),
        (1, True),
        (1, 1.0),
        (["a", "bc"], ["ab", "c"]),
        ({"x": None}, {"y": None}),
    ],
)
def test_answers_of_other_bits_kinds_or_shapes_differ(one, two):
    for answer in (two, one):
        found = interference(
            lambda data, answer=answer: lambda user, query: answer if data["b"] else one,
            {"a": 0, "b": 0},
            {"b": 1},
            {"a": [0]},
        )
        assert bool(found.leaks) == (answer is two)


def test_not_a_number_is_equal_to_itself():
    for nan in (float("nan"), torch.tensor(torch.nan), np.float32("nan")):
        found = interference(lambda _, x=nan: lambda user, query: x, STORED, OTHER, ASKED)
        assert found.leaks == {}


def test_a_pipeline_that_draws_anew_cannot_be_judged():
    draw = np.random.default_rng(0)
    with pytest.raises(StateError, match="the same answers from the same data, got others for 'a'"):
        interference(lambda _: lambda user, query: draw.normal(), STORED, OTHER, ASKED)
    with pytest.raises(InputError, match="data to replace and queries, got data of 0 users and 3"):
        interference(means(str), STORED, {}, ASKED)
    with pytest.raises(InputError, match="containers of these, got a set"):
        interference(lambda _: lambda user, query: {1}, STORED, OTHER, ASKED)
