"""Split-conformal calibration: printed numbers, and the false-alarm rate it promises."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from sonde.core.calibration import Calibration, Guarantee
from sonde.core.errors import CalibrationError, InputError
from sonde.stats.held_scores import SampledCalibration

SCORES = [0.1, 0.2, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.1]


def uniform(n: int, **options) -> Calibration:
    return Calibration.from_scores(torch.arange(n, 0, -1).double() / n, **options)


@pytest.mark.truth("numbers worked out by hand from (1 + #{a >= s}) / (n + 1)")
def test_p_values():
    found = Calibration.from_scores(SCORES).p_value([0.05, 0.2, 0.6, 2.0])
    assert found.tolist() == pytest.approx([1.0, 0.9, 0.5, 0.1], abs=1e-15)


@pytest.mark.truth("numbers worked out by hand from (1 + #{a >= s}) / (n + 1)")
def test_scores_may_come_in_any_order():
    found = Calibration(torch.tensor(SCORES[::-1], dtype=torch.float64))
    assert found.p_value([0.05, 0.2, 0.6, 2.0]).tolist() == pytest.approx([1.0, 0.9, 0.5, 0.1])
    assert found.threshold(0.2) == 0.9


@pytest.mark.truth("counting in Python")
def test_p_values_by_brute_force():
    g = torch.Generator().manual_seed(0)
    held = torch.randint(0, 12, (57,), generator=g).double()
    scores = torch.randint(-1, 13, (40,), generator=g).double()
    expected = [(1 + sum(h >= s for h in held.tolist())) / 58 for s in scores.tolist()]
    assert Calibration.from_scores(held).p_value(scores).tolist() == pytest.approx(expected)


@pytest.mark.truth("floor(alpha (n + 1)); scipy's binomial distribution")
def test_ranks_and_thresholds():
    assert uniform(1000).alarms_allowed(0.05) == 50
    assert uniform(99).alarms_allowed(0.29) == 29
    assert uniform(19).threshold(0.05) == 1.0
    with pytest.raises(CalibrationError, match="needs at least 19 held-out scores") as caught:
        uniform(18).threshold(0.05)
    assert caught.value.needed == 19
    for n in (100, 300, 1000, 10_000):
        # the most alarms whose rate is at most 0.05 in 95 % of calibrations
        rank = int(np.sum(binom.cdf(np.arange(n), n, 0.05) <= 0.05))
        assert uniform(n, guarantee="pac").alarms_allowed(0.05) == rank
    assert uniform(59, guarantee="pac").alarms_allowed(0.05) == 1
    with pytest.raises(CalibrationError) as caught:
        uniform(58, guarantee="pac").threshold(0.05)
    assert caught.value.needed == 59


@pytest.mark.truth("order statistics of 1,000 uniforms, worked out from the Beta distribution")
def test_the_interval_of_the_true_rate():
    low, high = uniform(1000).rate_interval(0.05)
    assert (round(low, 4), round(high, 4)) == (0.0392, 0.0618)
    low, high = uniform(100).rate_interval(0.05)
    assert (round(low, 4), round(high, 4)) == (0.0199, 0.0892)
    assert uniform(5).rate_interval(0.05) == (0.0, 0.0)


@pytest.mark.truth("definition: alarm if and only if p <= alpha")
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.29, 0.5])
@pytest.mark.parametrize(("guarantee", "delta"), [("marginal", 0.05), ("pac", 0.05), ("pac", 0.8)])
def test_threshold_and_p_value_decide_alike_also_with_ties(alpha, guarantee, delta):
    g = torch.Generator().manual_seed(1)
    held = torch.randint(0, 20, (99,), generator=g)
    calibration = Calibration.from_scores(held, guarantee, delta)
    scores = torch.randint(-1, 22, (500,), generator=g).double()
    alarm = scores > calibration.threshold(alpha)
    assert torch.equal(alarm, calibration.p_value(scores) <= alpha + 1e-12)


@pytest.mark.slow
@pytest.mark.truth("the beta distribution of the mass above an order statistic, by simulation")
@pytest.mark.parametrize("n", [60, 300])
def test_pac_p_values_alarm_too_often_in_few_calibrations_only(n):
    g = torch.Generator().manual_seed(n)
    alpha, delta, repeats, broken = 0.05, 0.1, 1000, 0
    grid = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)
    for _ in range(repeats):
        held = torch.rand(n, generator=g, dtype=torch.float64)
        p = Calibration.from_scores(held, "pac", delta).p_value(grid)
        assert bool((p.diff() <= 0).all())
        broken += 1 - float(grid[p <= alpha].min()) > alpha
    assert broken <= binom.ppf(0.999, repeats, delta)
    one = uniform(n, guarantee="pac", delta=delta)
    assert float(one.p_value([2.0])) == pytest.approx(1 - delta ** (1 / n))  # above every score
    assert float(one.p_value([-1.0])) == 1.0


@pytest.mark.truth("simulation: normal scores, the exact rate of each threshold")
@pytest.mark.parametrize("n", [40, 100, 300])
def test_the_promised_false_alarm_rates_hold(n):
    g = torch.Generator().manual_seed(n)
    alpha, repeats = 0.1, 200
    rates: dict[Guarantee, list[float]] = {"marginal": [], "pac": []}
    for _ in range(repeats):
        held = torch.randn(n, generator=g, dtype=torch.float64)
        for guarantee, found in rates.items():
            threshold = Calibration.from_scores(held, guarantee, 0.05).threshold(alpha)
            found.append(0.5 * math.erfc(threshold / math.sqrt(2)))
    rank = math.floor(alpha * (n + 1))
    spread = beta.std(rank, n + 1 - rank) / math.sqrt(repeats)
    mean = sum(rates["marginal"]) / repeats
    assert abs(mean - rank / (n + 1)) < 4 * spread
    assert mean < alpha + 4 * spread
    broken = sum(rate > alpha for rate in rates["pac"]) / repeats
    assert broken <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    broken_marginal = sum(rate > alpha for rate in rates["marginal"]) / repeats
    assert broken_marginal > 0.25


def test_infinite_scores_are_the_most_unusual():
    calibration = Calibration.from_scores([0.0, 1.0, math.inf])
    assert calibration.p_value([math.inf, 2.0]).tolist() == [0.5, 0.5]
    assert uniform(30).p_value([math.inf]).tolist() == pytest.approx([1 / 31])


def test_what_is_refused():
    with pytest.raises(CalibrationError, match="at least one score"):
        Calibration.from_scores([])
    with pytest.raises(InputError, match="held-out score is NaN"):
        Calibration.from_scores([0.1, math.nan])
    with pytest.raises(InputError, match="a score is NaN"):
        Calibration.from_scores([0.1]).p_value([math.nan])
    with pytest.raises(InputError, match="delta"):
        Calibration.from_scores([0.1], "pac", 1.0)
    for alpha in (0.0, 1.0, -0.1):
        with pytest.raises(InputError, match="alpha"):
            uniform(30).threshold(alpha)


@pytest.mark.truth("the p-values before the scores moved")
def test_p_values_stay_when_workers_move_the_scores_to_shared_memory():
    scores = torch.linspace(-3, 40, 997, dtype=torch.float64)
    for found in (Calibration(scores), SampledCalibration(scores[900:], scores[:900], 997)):
        asked = scores[::7] + 0.01
        before = found.p_value(asked)
        for field in dataclasses.fields(found):
            if isinstance(value := getattr(found, field.name), torch.Tensor):
                value.share_memory_()
        torch.full((997,), 7.0, dtype=torch.float64)  # takes the memory that was freed
        assert torch.equal(found.p_value(asked), before)
