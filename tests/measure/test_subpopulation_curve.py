import math

import numpy as np
import pytest
import torch
from scipy.stats import f as f_distribution
from tests.student import student

from sonde.core.errors import InputError
from sonde.measure import accuracies_at_angles, subpopulation_curve


@pytest.mark.truth("closed form: linear classifiers between a core and a spurious feature")
def test_the_ellipse_of_linear_classifiers():
    result = subpopulation_curve(*accuracies_at_angles(np.linspace(0, np.pi / 4, 9)))
    want = [1.1108523440, 0.5065627864, -0.6355806698]
    np.testing.assert_allclose(result.curve, want, rtol=1e-8)
    assert result.rms_line == pytest.approx(0.0753, abs=5e-5)
    assert result.rms_curve == pytest.approx(0.0188, abs=5e-5)
    assert result.p_value < 0.01
    assert result.peak == pytest.approx(0.5065627864 / (2 * 0.6355806698), rel=1e-8)


def noisy(bend, seed=0, nets=12, epochs=5, alike=0.2):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(nets), epochs)
    x = rng.uniform(0, 2, nets)[group] + 0.05 * rng.standard_normal(len(group))
    y = 0.3 + 0.4 * x + bend * x**2 + alike * rng.standard_normal(nets)[group]
    return torch.special.ndtr(torch.tensor(x)), torch.special.ndtr(torch.tensor(y)), group


@pytest.mark.truth("numpy.polyfit and scipy's F distribution")
def test_weights_and_test_are_the_peers():
    p, q, _ = noisy(-0.5)
    result = subpopulation_curve(p, q, 500, 200)
    x, y = result.x.numpy(), result.y.numpy()
    share, density = q.numpy(), np.exp(-0.5 * y**2) / math.sqrt(2 * math.pi)
    weight = np.sqrt(200 * density**2 / (share * (1 - share)))
    curve, line = (np.polyfit(x, y, k, w=weight) for k in (2, 1))
    np.testing.assert_allclose(result.curve, curve[::-1], rtol=1e-8)
    left = [((weight * (y - np.polyval(c, x))) ** 2).sum() for c in (line, curve)]
    statistic = (left[0] - left[1]) / (left[1] / (len(x) - 3))
    assert result.p_value == pytest.approx(f_distribution.sf(statistic, 1, len(x) - 3), rel=1e-6)


@pytest.mark.truth("numpy.polyfit without each net in turn")
def test_the_error_is_the_jackknife_over_nets():
    p, q, group = noisy(-0.5)
    result = subpopulation_curve(p, q, group=group)
    x, y = result.x.numpy(), result.y.numpy()
    kept = np.array([np.polyfit(x[group != g], y[group != g], 2)[0] for g in range(12)])
    want = math.sqrt(11 / 12 * ((kept - kept.mean()) ** 2).sum()) * student(12)
    assert float(torch.as_tensor(result.se)) == pytest.approx(want, rel=1e-6)


@pytest.mark.truth("straight lines with nets whose epochs are alike")
def test_epochs_of_a_net_are_no_evidence_of_their_own():
    found = [noisy(0.0, seed) for seed in range(40)]
    by_net = [subpopulation_curve(p, q, group=g) for p, q, g in found]
    alone = [subpopulation_curve(p, q) for p, q, _ in found]
    assert np.mean([r.p_value < 0.1 for r in by_net]) < 0.2
    assert np.mean([r.p_value < 0.1 for r in alone]) > 0.35
    spread = np.std([float(r) for r in by_net], ddof=1)
    assert 0.7 < np.mean([float(torch.as_tensor(r.se)) for r in by_net]) / spread < 1.6


def test_perfect_accuracies_are_moved_inwards_or_refused():
    p, q, _ = noisy(-0.5)
    p[0] = 1.0
    assert "clipped" in subpopulation_curve(p, q, 500, 200).flags
    with pytest.raises(InputError, match="Pass n_majority and n_minority"):
        subpopulation_curve(p, q)
    with pytest.raises(InputError, match="expected at least 5 points, got 4"):
        subpopulation_curve(p[1:5], q[1:5])
    with pytest.raises(InputError, match=r"expected minority accuracies in \[0, 1\]"):
        subpopulation_curve(p, q * 100, 500, 200)
