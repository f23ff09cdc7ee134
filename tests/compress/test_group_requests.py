"""Batches of one expert, and the fewest loads."""

from functools import cache

import numpy as np
import pytest

from sonde.compress import count_loads, group_requests
from sonde.core import InputError


@cache
def fewest(trace, held, room):
    """Return the fewest loads of all ways to evict."""
    if not trace:
        return 0
    first, *rest = trace
    rest = tuple(rest)
    if first in held:
        return fewest(rest, held, room)
    if len(held) < room:
        return 1 + fewest(rest, held | {first}, room)
    return 1 + min(fewest(rest, held - {gone} | {first}, room) for gone in held)


@pytest.mark.truth("all ways to evict")
def test_no_plan_needs_fewer_loads():
    draw, worse = np.random.default_rng(0), 0
    for _ in range(60):
        trace = tuple(draw.integers(0, 5, 11).tolist())
        for room in (1, 2, 3):
            assert count_loads(trace, room) == fewest(trace, frozenset(), room)
        recent, n_loads = list[int](), 0
        for expert in trace:
            n_loads += expert not in recent
            recent = [*(e for e in recent if e != expert), expert][-2:]
        worse += n_loads > count_loads(trace, 2)
    assert worse > 20  # to evict the least recent is often worse


def test_every_request_stands_in_one_batch_of_its_expert():
    experts = [3, 1, 3, 0, 1, 3, 3, 0]
    batches = group_requests(experts, 3)
    assert sorted(i for one in batches for i in one) == list(range(8))
    assert all(len({experts[i] for i in one}) == 1 and len(one) <= 3 for one in batches)
    assert [experts[one[0]] for one in batches] == [3, 3, 1, 0]
    assert count_loads([experts[i] for one in batches for i in one], 1) == 3
    single = sorted(range(8), key=lambda i: (experts.index(experts[i]), i))
    assert group_requests(experts, 1) == [[i] for i in single]
    with pytest.raises(InputError, match="a size from 1, got 0"):
        group_requests(experts, 0)
    with pytest.raises(InputError, match="room for an expert or more, got 0"):
        count_loads(experts, 0)
