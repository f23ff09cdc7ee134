"""Calibration of many scores in constant memory: exact rates, shards, classes, refusals."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sonde.core.calibration import Calibration
from sonde.core.errors import CalibrationError, InputError, ShapeError
from sonde.core.hashing import splitmix64
from sonde.core.state import equal, size_bytes
from sonde.stats import HeldScores, SampledCalibration


def draws(n, start=0):
    return torch.as_tensor(splitmix64(np.arange(start, start + n, dtype=np.uint64)).view(np.int64))


def observed(scores, statistic, label=None, start=0):
    scores = torch.as_tensor(scores).double()
    label = torch.zeros(len(scores), dtype=torch.int64) if label is None else label
    return statistic.observe(scores[:, None], label, draws(len(scores), start))


@pytest.mark.truth("the calibration that keeps every score")
def test_equal_to_keeping_all_scores():
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 300, (400,), generator=g)
    whole = Calibration.from_scores(scores)
    new = torch.arange(-1, 302).double()
    everything = observed(scores, HeldScores(400, 30)).calibration()
    assert everything.p_value(new).tolist() == pytest.approx(whole.p_value(new).tolist())
    sampled = observed(scores, HeldScores(50, 30)).calibration()
    high = new > float(scores.sort().values[-30])
    assert sampled.p_value(new)[high].tolist() == pytest.approx(whole.p_value(new)[high].tolist())
    for alpha in (0.01, 0.05, 0.07):
        assert sampled.threshold(alpha) == whole.threshold(alpha)
    for alpha in (0.05, 0.2, 0.5):
        decided = new > sampled.threshold(alpha)
        assert torch.equal(decided, sampled.p_value(new) <= alpha + 1e-12)


@pytest.mark.slow
@pytest.mark.truth("the exact binomial band of independent calibrations, one new score each")
@pytest.mark.parametrize("ties", [False, True])
def test_the_rate_lies_in_the_exact_binomial_band(ties):
    g = torch.Generator().manual_seed(7)
    repeats, n, p = 1000, 200, []
    for i in range(repeats):
        scores = torch.rand(n + 1, generator=g, dtype=torch.float64)
        scores = (scores * 12).floor() if ties else scores
        state = observed(scores[:n], HeldScores(20, 10), start=i * n)
        p.append(float(state.calibration().p_value(scores[n:])))
    for alpha in (0.03, 0.1, 0.3):
        alarms = sum(value <= alpha for value in p)
        assert alarms <= scipy.stats.binom.ppf(1 - 1e-4, repeats, alpha)
        if not ties:
            step = 1 / 201 if alpha < 10 / 201 else (191 / 201) / 11
            assert alarms >= scipy.stats.binom.ppf(1e-4, repeats, alpha - step)


@pytest.mark.truth("the true rate of each threshold on uniform scores")
@pytest.mark.parametrize("alpha", [0.04, 0.2])
def test_pac_thresholds_keep_their_promise(alpha):
    g = torch.Generator().manual_seed(3)
    broken = 0
    for i in range(200):
        scores = torch.rand(400, generator=g, dtype=torch.float64)
        state = observed(scores, HeldScores(150, 30), start=i * 400)
        broken += 1 - state.calibration(guarantee="pac", delta=0.1).threshold(alpha) > alpha
    assert broken <= scipy.stats.binom.ppf(0.999, 200, 0.1)


@pytest.mark.truth("definition: alarm if and only if p <= alpha; the calibration of all scores")
@pytest.mark.parametrize("alpha", [0.01, 0.04, 0.09, 0.2, 0.6])
def test_pac_p_values_and_thresholds_decide_alike(alpha):
    g = torch.Generator().manual_seed(5)
    scores = torch.randint(0, 700, (900,), generator=g)
    found = observed(scores, HeldScores(150, 60)).calibration(guarantee="pac", delta=0.1)
    new = torch.arange(-1, 703).double()
    p = found.p_value(new)
    assert torch.equal(new > found.threshold(alpha), p <= alpha)
    assert bool((p.diff() <= 0).all())
    high = new > float(scores.sort().values[-60])
    whole = Calibration.from_scores(scores, "pac", 0.1).p_value(new)
    assert p[high].tolist() == pytest.approx(whole[high].tolist())


@pytest.mark.truth("one pass over all shards; calibrations of each class alone")
def test_shards_merge_and_classes_stay_apart():
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(900, generator=g, dtype=torch.float64)
    label = torch.randint(-1, 3, (900,), generator=g)
    scores += 3 * label
    statistic = HeldScores(60, 20)
    whole = observed(scores, statistic, label)
    cut = [(600, 900), (0, 100), (100, 600)]
    parts = [observed(scores[a:b], statistic, label[a:b], a) for a, b in cut]
    merged = statistic.merge(statistic.merge(parts[0], parts[1]), parts[2])
    assert equal(merged, whole)
    assert whole.labels == [-1, 0, 1, 2]
    for k in (0, 2):
        alone = Calibration.from_scores(scores[label == k])
        assert whole.calibration(k).threshold(0.05) == alone.threshold(0.05)
    pooled = observed(scores, statistic)
    assert equal(whole.calibration(), pooled.calibration())
    with pytest.raises(CalibrationError, match="no held-out score of class 7"):
        whole.calibration(7)


@pytest.mark.slow
@pytest.mark.truth("the exact quantile of 10,000,000 uniform scores")
def test_ten_million_scores_take_constant_memory():
    statistic, state = HeldScores(), None
    g = torch.Generator().manual_seed(0)
    sizes = []
    for i in range(40):
        part = observed(torch.rand(250_000, generator=g), statistic, start=i * 250_000)
        state = part if state is None else statistic.merge(state, part)
        sizes.append(size_bytes(state))
    assert state is not None
    assert state.n == 10_000_000
    assert set(sizes) == {16 * 11_000}
    found = state.calibration()
    assert found.threshold(1e-5) == pytest.approx(1 - 1e-5, abs=4e-6)
    assert found.threshold(0.05) == pytest.approx(0.95, abs=0.01)


@pytest.mark.truth("the calibration of the rows themselves")
def test_rows_that_come_twice_count_once_where_all_are_kept():
    statistic, scores = HeldScores(500, 30), torch.randn(400, dtype=torch.float64)
    state = statistic.merge(observed(scores, statistic), observed(scores, statistic))
    whole = Calibration.from_scores(scores)
    assert state.calibration().n == 400
    assert state.calibration().p_value(scores).tolist() == pytest.approx(
        whole.p_value(scores).tolist()
    )


def test_what_is_refused():
    statistic = HeldScores(10, 5, max_classes=3)
    with pytest.raises(ShapeError, match="expected a column 2"):
        HeldScores(column=2).observe(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), draws(4))
    with pytest.raises(InputError, match="1 NaN"):
        observed([0.0, math.nan], statistic)
    with pytest.raises(InputError, match="label 3"):
        observed([0.0], statistic, torch.tensor([3]))
    with pytest.raises(InputError, match="at least 1"):
        HeldScores(0)
    found = observed(torch.arange(18), statistic).calibration()
    with pytest.raises(CalibrationError, match="at least 19") as caught:
        found.threshold(0.05)
    assert caught.value.needed == 19
    with pytest.raises(InputError, match="NaN"):
        found.p_value([math.nan])


@pytest.mark.truth("the true rate of the threshold, in nine of ten calibrations")
@pytest.mark.parametrize(("m", "top", "alpha"), [(100, 20, 0.03), (100, 20, 0.04), (10, 10, 0.05)])
def test_the_interval_of_the_rate_covers_it(m, top, alpha):
    rng = np.random.default_rng(0)
    n, hits = 1000, 0
    for _ in range(300):
        highest = rng.beta(top, n + 1 - top)  # how much lies above the smallest of the largest
        tail = 1 - np.r_[highest, highest * rng.random(top - 1)]
        rest = rng.random(m) * (1 - highest)
        found = SampledCalibration(
            torch.tensor(tail).sort().values, torch.tensor(rest).sort().values, n
        )
        low, high = found.rate_interval(alpha, 0.9)
        hits += low <= 1 - found.threshold(alpha) <= high
    assert hits >= scipy.stats.binom.ppf(1e-3, 300, 0.9)
