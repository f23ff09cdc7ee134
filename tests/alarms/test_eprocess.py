"""Alarms over time: printed numbers, exact means of bets, and the promise over many streams."""

import math
import sys

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from tools.figures.alarms import frozen, promises, text

from sonde.alarms import ChangeDetector, Cusum, EProcess, bet, mixture_wealth
from sonde.core.errors import InputError

P = [0.3, 0.02, 0.5, 0.01, 0.04]


@pytest.mark.truth("numbers worked out by hand; scipy.integrate.quad")
def test_bets_and_wealth():
    bets = [bet(p, 0.5) for p in P]
    assert bets == pytest.approx([0.91287093, 3.53553391, 0.70710678, 5, 2.5], abs=1e-8)
    assert np.cumprod(bets)[-1] == pytest.approx(28.52721654, abs=1e-7)
    wealth = mixture_wealth(P)
    assert wealth[[0, 1, 4]].tolist() == pytest.approx([0.77911085, 2.20254779, 15.46438661])
    exact = scipy.integrate.quad(lambda k: math.prod(bet(p, k) for p in P), 0, 1)[0]
    assert wealth[-1] == pytest.approx(exact, rel=1e-9)


@pytest.mark.truth("ranks counted in Python with the same random numbers")
def test_online_p_values_by_brute_force():
    rng = np.random.default_rng(0)
    scores, seen = rng.integers(0, 6, 60).tolist(), rng.integers(0, 6, 20).tolist()
    watch, u = EProcess(seen, delta=1e-9, seed=3), np.random.default_rng(3)
    ps = []
    for s in scores:
        found = watch.update(s)
        above, equal = sum(a > s for a in seen), sum(a == s for a in seen)
        ps.append((above + (1 - u.random()) * (1 + equal)) / (len(seen) + 1))
        assert found.p == pytest.approx(ps[-1], abs=1e-15)
        seen.append(s)
        assert found.wealth == pytest.approx(mixture_wealth(ps)[-1], rel=1e-9)


@pytest.mark.truth("Kolmogorov-Smirnov test and Ljung-Box-like correlation of uniform p-values")
def test_online_p_values_are_uniform_with_ties():
    rng = np.random.default_rng(1)
    watch = EProcess(rng.integers(0, 4, 50), delta=1e-300, seed=1)
    p = np.array([watch.update(s).p for s in rng.integers(0, 4, 3000)])
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 4 / 3000**0.5


@pytest.mark.slow
@pytest.mark.truth("400 simulated streams for each row of the table; exact binomial bounds")
def test_the_promise_over_whole_streams():
    rows = promises(streams=400, horizon=1000)
    by = {(r.form, r.n, r.shift): r for r in rows}
    for row in rows:
        if row.form == "online" and row.shift == 0:
            assert row.false_alarms <= scipy.stats.binom.ppf(0.999, 400, row.delta), row
    broken = by["frozen", 100, 0.0]
    assert broken.false_alarms > scipy.stats.binom.ppf(0.999, 400, broken.delta)
    seen = by["online", 500, 1.0]
    assert seen.found + seen.false_alarms == 400
    assert by["online", 500, 1.0].delay < by["online", 500, 0.5].delay
    assert "online" in text(rows)


@pytest.mark.truth("ranks in a fixed set, counted in Python")
def test_the_frozen_form_of_the_table_is_what_it_says():
    p = frozen(np.array([1.0, 2.0, 3.0]), np.array([2.5, 0.0]), np.array([0.5, 0.25]))
    assert p.tolist() == pytest.approx([(1 + 0.5) / 4, (3 + 0.25) / 4])


@pytest.mark.truth("mean time to a false alarm over 200 streams, against the promised least")
def test_change_detector():
    times = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        watch = ChangeDetector(rng.normal(size=200), patience=20, seed=seed)
        times.append(next(t for t in range(1, 5000) if watch.update(rng.normal()).alarm))
    assert np.mean(times) + 3 * np.std(times) / 200**0.5 >= 20
    rng = np.random.default_rng(0)
    watch = ChangeDetector(rng.normal(size=500), patience=1e4)
    assert not any(watch.update(s).alarm for s in rng.normal(size=100))
    found = [watch.update(s).alarm for s in 2 + rng.normal(size=40)]
    assert any(found)
    after = watch.update(0.0)
    assert after.wealth < 1e4


@pytest.mark.slow
@pytest.mark.truth("numbers worked out by hand; Siegmund's approximation of the run length")
def test_cusum():
    c, path = Cusum(), []
    for z in (0, 1.2, 0.4, 2.0, 1.5):
        c = c.after(z)
        path.append(c.value)
    assert path == pytest.approx([0, 0.7, 0.6, 2.1, 3.1])
    rng, lengths = np.random.default_rng(0), []
    for _ in range(400):
        c, t = Cusum(limit=3.0), 0
        while not c.alarm:
            c, t = c.after(rng.normal()), t + 1
        lengths.append(t)
    b = 3.0 + 1.166
    want = (math.exp(b) - b - 1) / 0.5
    assert np.mean(lengths) == pytest.approx(want, rel=0.2)
    assert Cusum.z_of(0.025) == pytest.approx(1.959964, abs=1e-6)


def test_an_alarm_stays_and_infinite_scores_bet_most():
    watch = EProcess(range(200), delta=0.01)
    found = [watch.update(math.inf) for _ in range(6)] + [watch.update(100) for _ in range(40)]
    assert not found[0].alarm
    assert found[-1].alarm
    assert found[-1].step == 46


@pytest.mark.truth("the wealth of the same stream, just below and just above one over delta")
def test_the_alarm_is_raised_where_the_wealth_reaches_one_over_delta():
    def watched(delta):
        watch = EProcess(range(200), delta=delta)
        return [watch.update(s) for s in np.linspace(100, 260, 60)]

    wealth = [w.wealth for w in watched(1e-300)]
    at = next(i for i, w in enumerate(wealth) if w >= 10)
    for share, is_raised in ((0.999, True), (1.001, False)):
        found = watched(1 / (share * wealth[at]))
        assert [found[at - 1].alarm, found[at].alarm] == [False, is_raised]


def test_what_is_refused():
    with pytest.raises(InputError, match="NaN"):
        EProcess().update(math.nan)
    with pytest.raises(InputError, match="delta"):
        EProcess(delta=0)
    with pytest.raises(InputError, match="patience"):
        ChangeDetector(patience=1)
    with pytest.raises(InputError, match=r"in \(0, 1\]"):
        mixture_wealth([0.0])
    with pytest.raises(InputError, match="limit"):
        Cusum(limit=0)
    with pytest.raises(InputError, match="p-value"):
        Cusum.z_of(0.0)
    with pytest.raises(InputError, match="got NaN"):
        Cusum(value=4.9).after(float("nan"))
    assert Cusum.z_of(1.0) == -8.0


def test_memory_grows_by_eight_bytes_for_each_score():
    watch = EProcess(range(1000))
    for score in range(9000):
        watch.update(score)
    assert sys.getsizeof(watch._ranks.scores) < 1.3 * 8 * 10_000


@pytest.mark.truth("scores that a careful bet gains on, and the mean of all bets loses on")
def test_a_small_change_is_detected():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        watch = ChangeDetector(rng.normal(size=2000), patience=1e6, sides="both", seed=seed)
        assert not any(watch.update(s).alarm for s in rng.normal(size=200))
        found = [watch.update(s).alarm for s in 0.5 + rng.normal(size=500)]
        assert any(found)
