import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control

from sonde.stats import adjusted_p, benjamini_hochberg


@pytest.mark.truth("scipy.stats.false_discovery_control")
def test_benjamini_hochberg_matches_scipy():
    p = np.random.default_rng(0).random(50) ** 3
    np.testing.assert_allclose(
        adjusted_p(torch.from_numpy(p), "bh"), false_discovery_control(p), rtol=1e-12
    )


@pytest.mark.truth("the closed test of Bonferroni over all subsets")
def test_holm_is_the_closure_of_bonferroni():
    p = np.array([0.011, 0.2, 0.004, 0.03, 0.011])
    subsets = [[i for i in range(5) if mask >> i & 1] for mask in range(1, 32)]
    want = [
        max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(5)
    ]
    np.testing.assert_allclose(adjusted_p(torch.from_numpy(p)), want, rtol=1e-12)


def test_agrees_with_the_discoveries():
    p = torch.from_numpy(np.random.default_rng(1).random(40) ** 4)
    assert torch.equal(adjusted_p(p, "bh") <= 0.05, benjamini_hochberg(p, 0.05))


def test_nan_does_not_count_and_nothing_gives_nothing():
    found = adjusted_p(torch.tensor([0.01, torch.nan, 0.5]))
    assert found[0] == pytest.approx(0.02)
    assert bool(torch.isnan(found[1]))
    assert adjusted_p(torch.zeros(0)).shape == (0,)
    assert adjusted_p(torch.zeros(0), "bh").shape == (0,)
