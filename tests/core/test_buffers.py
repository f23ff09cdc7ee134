"""How many rows wait for one call of ``observe``."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from kept_rows import Keep, Rows, one
from narrow import expect
from sonde.core.stream import Stream
from sonde.engine.joining import BUFFER_ROWS, BUFFER_ROWS_WIDE
from sonde.engine.passes import observe_unit


@dataclass(frozen=True)
class KeepWhole(Keep):
    whole_groups: ClassVar = True


@dataclass(frozen=True)
class KeepBounded(Keep):
    merging: ClassVar = "bounded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "dim", "full"),
    [
        (Keep(), 4, 4096),
        (Keep(), 64, 4096),
        (Keep(), 65, BUFFER_ROWS),
        (Keep(), 300, BUFFER_ROWS_WIDE),
        (KeepBounded(), 4, BUFFER_ROWS),
        (KeepBounded(), 300, BUFFER_ROWS_WIDE),
    ],
)
def test_rows_wait_until_there_are_enough_and_flush_at_the_end_of_the_unit(statistic, dim, full):
    x = torch.randn(2 * full + 100, dim)
    batches = [
        b
        for part in range(0, len(x), 64)
        for b in Stream.of(x).batches(part, min(part + 64, len(x)))
    ]
    Keep.seen.clear()
    states = observe_unit(batches, one(statistic, "x"))
    assert Keep.seen == [full, full, 100]
    assert torch.equal(expect(Rows, next(iter(states.values()))).x, x)


def test_what_is_exact_takes_its_rows_the_same_way_beside_what_is_not():
    x = torch.randn(4196, 4)
    Keep.seen.clear()
    batches = Stream.of(x).batches(0, len(x))
    observe_unit(batches, {**one(Keep(), "x"), **one(KeepBounded(), "x")})
    assert sorted(Keep.seen) == [100, 100, 2048, 2048, 4096]


def test_whole_groups_wait_for_the_end_of_the_unit():
    x = torch.randn(BUFFER_ROWS + 500, 2)
    Keep.seen.clear()
    observe_unit(Stream.of(x).batches(0, len(x)), one(KeepWhole(), "x"))
    assert Keep.seen == [len(x)]
