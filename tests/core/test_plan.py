"""Units and plans depend on data and parameters alone."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sonde.core.hashing import rank_key
from sonde.core.plan import Plan, Split, groups_are_whole, unit_bounds


@given(
    sizes=st.lists(st.integers(1, 30), max_size=30),
    unit=st.integers(1, 8),
)
def test_units_cut_at_group_borders_and_never_grow_beyond_four_times_their_size(sizes, unit):
    keys = [f"g{i}".encode() for i, n in enumerate(sizes) for _ in range(n)]
    bounds = unit_bounds(keys, unit)
    assert bounds[0] == 0
    assert bounds[-1] == len(keys)
    for i, (start, stop) in enumerate(pairwise(bounds)):
        last = i == len(bounds) - 2
        assert last or unit <= stop - start <= 4 * unit
        cuts_a_group = stop < len(keys) and keys[stop] == keys[stop - 1]
        assert not cuts_a_group or stop - start == 4 * unit
        shorter = range(start + unit, stop)
        assert all(keys[end] == keys[end - 1] for end in shorter)


def test_without_groups_units_have_the_size():
    assert unit_bounds([bytes([i]) for i in range(10)], 4) == [0, 4, 8, 10]
    assert unit_bounds([], 4) == [0]


def test_whole_groups():
    assert groups_are_whole([b"a", b"a", b"b"], [0, 2, 3])
    assert not groups_are_whole([b"a", b"a", b"b"], [0, 1, 3])
    assert not groups_are_whole([b"a", b"b", b"a"], [0, 2, 3])


PLAN = Plan({"data": "d"}, ("r1", "r2"), (0, 4, 8, 11), Split(0.2), 0, 1, None)


@pytest.mark.parametrize(
    "change",
    [
        {"stream": {"data": "e"}},
        {"requests": ("r2", "r1")},
        {"bounds": (0, 4, 9, 11)},
        {"split": Split(0.3)},
        {"split": Split(0.2, seed=1)},
        {"split": None},
        {"stage": 1},
        {"commit_level": 0},
        {"threads": 1},
    ],
)
def test_every_part_of_a_plan_is_in_its_id(change):
    assert replace(PLAN, **change).id != PLAN.id


def test_a_plan_is_the_same_text_each_time():
    assert Plan({"data": "d"}, ("r1", "r2"), (0, 4, 8, 11), Split(0.2), 0, 1, None).id == PLAN.id
    assert len(PLAN.id) == 32
    assert (PLAN.n_units, PLAN.n_examples) == (3, 11)


def test_commits_are_aligned_ranges():
    assert PLAN.commits() == [(0, 2), (2, 3)]
    assert replace(PLAN, commit_level=5).commits() == [(0, 3)]
    assert replace(PLAN, bounds=(0,)).commits() == []


@pytest.mark.parametrize("held", [0.0, 1.0, -0.1, 2.0])
def test_a_split_holds_out_a_share(held):
    with pytest.raises(ValueError, match="held-out fraction in"):
        Split(held)


def test_a_split_of_few_groups_leaves_no_part_empty():
    """The cut moves in the order of the hash, and only if the hash leaves a part empty."""
    for seed in range(40):
        draws = torch.randint(-(2**63), 2**63 - 1, (5,), generator=torch.manual_seed(seed))
        for share in (0.1, 0.2, 0.45, 0.9):
            plain = Split(share, 3)
            split = plain.of_groups(draws)
            held, order = split.is_held(draws), rank_key(draws).argsort()
            n = int(held.sum())
            assert 0 < n < 5
            assert bool(held[order][:n].all())
            assert (split == plain) == (0 < int(plain.is_held(draws).sum()) < 5)
    assert Split(0.2).of_groups(draws[:1]) == Split(0.2)
