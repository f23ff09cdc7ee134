"""Combined p-values: printed numbers, other libraries, and their rates on dependent sites."""

import numpy as np
import pytest
import scipy.stats
import torch

import sonde.alarms
from sonde.alarms import bonferroni, cauchy, fuse, simes, twice_mean
from sonde.core.calibration import Calibration
from sonde.core.errors import InputError

P = [[0.01, 0.04, 0.20]]


@pytest.mark.truth("numbers worked out by hand")
@pytest.mark.parametrize(
    ("rule", "want"),
    [(bonferroni, 0.03), (simes, 0.03), (twice_mean, 0.16666667), (cauchy, 0.02318602)],
)
def test_printed_numbers(rule, want):
    assert float(rule(P)) == pytest.approx(want, abs=1e-8)


@pytest.mark.truth("scipy.stats.cauchy; Simes as the smallest Benjamini-Hochberg value")
def test_against_scipy():
    p = 0.99 * np.random.default_rng(0).random((50, 7))
    t = np.tan((0.5 - p) * np.pi).mean(1)
    np.testing.assert_allclose(cauchy(p), scipy.stats.cauchy.sf(t), rtol=1e-9)
    want = [scipy.stats.false_discovery_control(row).min() for row in p]
    np.testing.assert_allclose(simes(p), want, rtol=1e-12)


@pytest.mark.truth("the smallest of m p-values times m, to which the rule comes close")
@pytest.mark.parametrize("m", [2, 12, 50])
def test_one_site_that_sees_nothing_does_not_blind_the_others(m):
    p = np.full((3, m), 0.5)
    p[:, 0] = 1e-6
    p[1, 1], p[2, 1] = 1 - 1e-6, 1.0
    without, near, at_one = cauchy(p).tolist()
    assert without == pytest.approx(m * 1e-6, rel=1e-3)
    assert without < near == at_one < 1.01 * without
    assert float(cauchy([[1.0] * m])) > 0.95


@pytest.mark.slow
@pytest.mark.truth("simulation: uniform and conformal p-values of m sites with a common part")
@pytest.mark.parametrize("m", [2, 5, 12, 50])
@pytest.mark.parametrize(("share", "most"), [(0.0, 1.02), (0.5, 1.5), (0.9, 1.1)])
def test_rates_of_cauchy(m, share, most):
    rng, n = np.random.default_rng(m), 60_000
    common, own = rng.standard_normal((n, 1)), rng.standard_normal((n, m))
    uniform = scipy.stats.norm.sf(share**0.5 * common + (1 - share) ** 0.5 * own)
    conformal = np.ceil(200 * uniform) / 200
    plain = scipy.stats.cauchy.sf(np.tan((0.5 - uniform) * np.pi).mean(1))
    for alpha in (0.01, 0.05, 0.1):
        rate, error = float((cauchy(uniform) <= alpha).double().mean()), (alpha / n) ** 0.5
        assert rate < most * alpha + 3 * error
        assert rate < 1.02 * (plain <= alpha).mean() + error
        assert float((cauchy(conformal) <= alpha).double().mean()) < rate + error


def test_fisher_is_not_offered():
    assert not any("fisher" in name.lower() for name in sonde.alarms.__all__)


@pytest.mark.slow
@pytest.mark.truth("simulation: 12 sites of correlation 0.8, calibrated on 1,000 rows")
def test_rates_on_dependent_sites():
    found = {rule.__name__: [] for rule in (bonferroni, simes, twice_mean)} | {"fuse": []}
    fisher = []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)

        def rows(n, g=g):
            shared = torch.randn(n, 1, generator=g, dtype=torch.float64)
            own = torch.randn(n, 12, generator=g, dtype=torch.float64)
            return 0.8**0.5 * shared + 0.2**0.5 * own

        held, new = rows(1000), rows(500)
        p = torch.stack(
            [Calibration.from_scores(held[:, i]).p_value(new[:, i]) for i in range(12)], dim=1
        )
        for rule in (bonferroni, simes, twice_mean):
            found[rule.__name__].append(float((rule(p) <= 0.05).double().mean()))
        found["fuse"].append(float((fuse(held).p_value(new) <= 0.05).double().mean()))
        t = -2 * p.log().sum(1)
        fisher.append(float((torch.as_tensor(scipy.stats.chi2.sf(t, 24)) <= 0.05).double().mean()))
    mean = {name: float(np.mean(rates)) for name, rates in found.items()}
    assert np.mean(fisher) > 0.15
    assert mean["bonferroni"] < 0.035
    assert mean["simes"] < 0.045
    assert mean["twice_mean"] < 0.03
    error = np.std(found["fuse"]) / 60**0.5
    assert abs(mean["fuse"] - 0.05) < 4 * error


def test_what_is_refused():
    for wrong in ([0.1, 0.2], [[0.0, 0.1]], [[0.5, 1.5]], [[]]):
        with pytest.raises(InputError, match=r"p-values in \(0, 1\]"):
            simes(wrong)
