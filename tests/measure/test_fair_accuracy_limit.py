import numpy as np
import pytest

from sonde.core.errors import InputError
from sonde.measure import fair_accuracy_limit

Z, S = np.array([(z, s) for z in (0, 1) for s in (0, 1)]).T


@pytest.mark.truth("populations whose limit is known")
def test_known_limits():
    for gap, want in ((0.0, 0.5), (0.1, 0.55), (0.4, 0.7), (1.0, 1.0)):
        assert fair_accuracy_limit(Z, S, Z, overall=gap).value == pytest.approx(want)
    assert fair_accuracy_limit(Z, S, Z ^ S, overall=0.0).value == pytest.approx(1.0)
    assert fair_accuracy_limit(Z, S, Z ^ S, local=0.0).value == pytest.approx(0.5)
    alike = np.repeat([0, 1, 2, 3], [4, 1, 1, 4])  # attribute and client agree in four of five
    assert fair_accuracy_limit(Z[alike], S[alike], S[alike], local=0.0).value == pytest.approx(1.0)
    found = fair_accuracy_limit(Z[alike], S[alike], S[alike], overall=0.0)
    assert found.value == pytest.approx(0.7)
    assert fair_accuracy_limit(Z, S, Z).value == pytest.approx(1.0)


@pytest.mark.truth("the rule applied to the rows")
def test_the_rule_is_fair_and_as_good_as_said():
    rng = np.random.default_rng(0)
    z, s, y = rng.integers(0, 3, (3, 300))
    y = np.where(rng.random(300) < 0.5, z, y)
    found = fair_accuracy_limit(z, s, y, overall=0.05, local=0.2)
    rule = found.rule.numpy()[z, s, y]
    assert np.mean(rule[np.arange(300), y]) == pytest.approx(found.value)
    assert found.null == pytest.approx(max(np.mean(y == k) for k in range(3)))
    for rows, most in ((s >= 0, 0.05), *((s == k, 0.2) for k in range(3))):
        share = np.stack([rule[rows & (z == k)].mean(0) for k in range(3)])
        assert np.ptp(share, axis=0).max() < most + 1e-9
    assert found.value < fair_accuracy_limit(z, s, y, overall=0.05).value + 1e-9 < 1.0


def test_a_negative_gap_is_refused():
    with pytest.raises(InputError, match="fair_accuracy_limit: expected local of at least 0"):
        fair_accuracy_limit(Z, S, Z, local=-0.1)
