"""Fuse, then calibrate: the exact band of the rate, learned weights, groups, refusals."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from sonde.alarms import fuse, surprise
from sonde.core.errors import CalibrationError, InputError
from sonde.core.state import equal


def rows(n, g, useful=0.0):
    shared = torch.randn(n, 1, generator=g, dtype=torch.float64)
    found = shared + torch.randn(n, 4, generator=g, dtype=torch.float64)
    found[:, 0] += useful
    return found


@pytest.mark.slow
@pytest.mark.truth("one fresh row for each of 600 calibrations: an exact binomial band")
@pytest.mark.parametrize("rule", ["sum", "max", "learned"])
def test_the_rate_lies_in_the_exact_binomial_band(rule):
    g = torch.Generator().manual_seed(5)
    alpha, repeats, alarms, allowed = 0.1, 600, 0, 0.0
    known = rows(40, g, useful=3.0) if rule == "learned" else None
    for i in range(repeats):
        fused = fuse(rows(80, g), rule=rule, out_of_distribution=known, seed=i)
        alarms += int(fused.p_value(rows(1, g)) <= alpha)
        n = fused.calibration.n
        allowed += math.floor(alpha * (n + 1) + 1e-9) / (n + 1) / repeats
    low, high = scipy.stats.binom.ppf([1e-4, 1 - 1e-4], repeats, allowed)
    assert low <= alarms <= high


def test_learned_weights_see_more_where_one_site_knows():
    g = torch.Generator().manual_seed(0)
    held, known, new = rows(2000, g), rows(300, g, 2.0), rows(1000, g, 2.0)
    plain, learned = fuse(held), fuse(held, rule="learned", out_of_distribution=known)
    assert learned.weights.argmax() == 0
    assert (learned.weights >= 0).all()
    seen = [float((f.p_value(new) <= 0.05).double().mean()) for f in (plain, learned)]
    assert seen[1] > seen[0] + 0.1
    assert learned.explain(new).shape == (1000, 4)


@pytest.mark.truth("the sum of -log p over the first half, by hand")
def test_sum_by_hand():
    g = torch.Generator().manual_seed(3)
    held = rows(60, g)
    fused = fuse(held)
    inside = torch.stack([r[[3, 10]] for r in fused.reference], dim=1)
    n = len(fused.reference[0])
    p = (1 + n - torch.tensor([3.0, 10.0])) / (n + 1)
    assert fused.score(inside).tolist() == pytest.approx((-4 * p.log()).tolist(), rel=1e-6)
    assert fused.calibration.n + n == 60


def test_groups_stay_whole_and_count_once():
    g = torch.Generator().manual_seed(4)
    held, group = rows(400, g), np.repeat(np.arange(40), 10)
    fused = fuse(held, group)
    assert fused.calibration.n + len(fused.reference[0]) // 10 == 40
    order = torch.randperm(400, generator=g)
    other = fuse(held[order], group[order.numpy()])
    assert all(equal(a, b) for a, b in zip(fused.reference, other.reference, strict=True))


@pytest.mark.truth("scores that rise along a document: the rate of a row at random of a new one")
def test_a_row_at_random_of_each_group_calibrates():
    g = torch.Generator().manual_seed(6)
    rates = []
    for seed in range(10):
        rise = 0.3 * torch.arange(10)[:, None]
        held, new = (rise + torch.randn(n, 10, 3, generator=g) for n in (400, 2000))
        fused = fuse(held.flatten(0, 1), np.repeat(np.arange(400), 10), seed=seed)
        one = new[torch.arange(2000), torch.randint(10, (2000,), generator=g)]
        rates.append(float((fused.p_value(one) <= 0.05).double().mean()))
    assert 0.03 < np.mean(rates) < 0.07


def test_far_rows_keep_their_order():
    reference = torch.arange(100).double()
    found = surprise(torch.tensor([50.0, 99.0, 200.0, 400.0, math.inf]).double(), reference)
    assert (found.diff() > 0).all()


def test_what_is_refused():
    g = torch.Generator().manual_seed(0)
    with pytest.raises(CalibrationError, match="groups in each half"):
        fuse(rows(3, g))
    with pytest.raises(InputError, match="learned"):
        fuse(rows(30, g), rule="learned")
    with pytest.raises(InputError, match="learned"):
        fuse(rows(30, g), out_of_distribution=rows(3, g))
    untyped: Any = inspect.unwrap(fuse)  # tests check types, users' calls do not
    with pytest.raises(InputError, match=r"a rule of sum, max, learned, got 'simes'.*function"):
        untyped(rows(30, g), rule="simes")
    with pytest.raises(InputError, match="without NaN"):
        fuse([[math.nan, 1.0]])
    with pytest.raises(InputError, match=r"\(row, 4\)"):
        fuse(rows(30, g)).score([[1.0, 2.0]])
    with pytest.raises(InputError, match="no weights can be learned"):
        fuse(rows(300, g), rule="learned", out_of_distribution=rows(300, g) - 5)


@pytest.mark.parametrize("shape", [(20, 2), (20, 4), (20,), (0, 3)])
def test_unusual_rows_have_a_score_at_every_site(shape):
    scores = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"fuse: expected unusual scores \(row, 3\)"):
        fuse(scores, rule="learned", out_of_distribution=torch.full(shape, 3.0))
