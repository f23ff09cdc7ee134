"""Which rows count as finite: the same ones for fits, scores and counts."""

import math

import pytest
import torch

from sonde.core.finite import all_finite, fetched, finite_entries, finite_rows, largest
from sonde.core.result import infinite_where_nonfinite
from sonde.core.stream import Stream
from sonde.engine.selection import FiniteRows

ROWS = [
    (torch.float32, 1e15, True),
    (torch.float32, 1e16, False),
    (torch.float32, 3e38, False),
    (torch.bfloat16, 1e25, False),
    (torch.float16, 6e4, True),
    (torch.float64, 3e38, True),
    (torch.float64, 1e61, False),
    (torch.float64, math.nan, False),
    (torch.float32, -math.inf, False),
]


@pytest.mark.truth("the sizes that the decision record names")
@pytest.mark.parametrize(("dtype", "size", "is_finite"), ROWS)
def test_fits_scores_and_counts_agree_on_a_row(dtype, size, is_finite):
    x = torch.ones(4, 3, dtype=dtype)
    x[1, 2] = size
    assert finite_rows(x).tolist() == [True, is_finite, True, True]
    assert all_finite([x, x[2:]]) == [is_finite, True]
    finite = FiniteRows(next(Stream.of(x).batches(0, 4)))
    assert finite.n_bad == {"x": 0 if is_finite else 1}
    scores = infinite_where_nonfinite(torch.zeros(4), x)
    assert scores.tolist() == [0.0, 0.0 if is_finite else math.inf, 0.0, 0.0]


@pytest.mark.truth("sums over as many rows and units as there may be, in the type itself")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_of_what_is_finite_have_finite_sums(dtype):
    top = torch.tensor(2 * largest(dtype), dtype=dtype)
    assert bool(torch.isfinite(top.square() * 4096 * 1024))
    if dtype == torch.float64:
        assert bool(torch.isfinite(top**4 * 1e10))


def test_a_masked_logit_is_no_reason_for_infinity():
    logits = torch.tensor([[1.0, torch.finfo(torch.float32).min], [math.nan, 0.0]])
    assert infinite_where_nonfinite(torch.zeros(2), logits=logits).tolist() == [0.0, math.inf]


@pytest.mark.truth("the numbers as they were made")
def test_numbers_are_fetched_in_their_order():
    numbers = [torch.tensor(float(v)) for v in (3, float("inf"), -1)]
    assert fetched(numbers) == [3.0, math.inf, -1.0]
    assert fetched([]) == []


def test_many_small_numbers_with_a_long_norm_are_finite():
    x = torch.full((4, 2), largest(torch.float64), dtype=torch.float64)
    assert all_finite([x, torch.ones(0, 2)]) == [True, True]
    assert finite_entries(x * 1.1).sum() == 0
