import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import independent_information
from sonde.core.errors import InputError
from sonde.measure import DCI, dci
from sonde.measure.dci import concentration


@pytest.mark.truth("scipy's entropy of each line of the table")
def test_known_values():
    table = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    two_of_ten = torch.tensor([[1.0] * 2 + [0.0] * 8], dtype=torch.float64)
    for lines in (table, table.T, two_of_ten):
        total, parts = concentration(lines)
        want, want_parts = independent_information.concentration(lines)
        np.testing.assert_allclose(parts, want_parts, rtol=1e-9)
        assert float(total) == pytest.approx(want, rel=1e-9)


SPARSE = np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0.3, 1, 0.0]])
DENSE = np.array([[2, 1, 0.7, 1], [-1, 2, 0.5, 0.3], [0.6, -1, 2, -0.6]])


def rows(n=500, seed=0, mixing=SPARSE):
    rng = np.random.default_rng(seed)
    factors = rng.integers(0, 5, (n, 3)).astype(float)
    return factors @ mixing + 0.5 * rng.standard_normal((n, 4)), factors


@pytest.mark.truth("scikit-learn's ridge of standardised columns")
def test_importances_are_the_peers_coefficients():
    latents, factors = rows()
    x, y = ((z - z.mean(0)) / z.std(0) for z in (latents, factors))
    peer = Ridge(alpha=500 * 0.1).fit(x, y)
    result = dci(latents, factors, ridge=0.1)
    np.testing.assert_allclose(result.importance, np.abs(peer.coef_), rtol=1e-9)
    left = ((y - peer.predict(x)) ** 2).mean(0)
    np.testing.assert_allclose(result.informativeness, 1 - left, rtol=1e-9)
    assert result.value == pytest.approx(float(concentration(result.importance.T)[0]), rel=1e-12)


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws, and unrelated sides")
def test_standard_error_and_null():
    for mixing, most in ((DENSE, 1.4), (SPARSE, 2.2)):
        found = [dci(*rows(seed=s, mixing=mixing)) for s in range(20)]
        spread = np.std([float(r) for r in found], ddof=1)
        assert 0.7 < np.mean([float(torch.as_tensor(r.se)) for r in found]) / spread < most
    assert "se_first_order" in found[0].flags
    free = [dci(rows(seed=s)[0], rows(seed=s + 90)[1]) for s in range(20)]
    null = float(torch.as_tensor(free[0].null))
    assert np.mean([float(r) for r in free]) == pytest.approx(null, rel=0.2)
    assert np.mean([r.complete for r in free]) == pytest.approx(free[0].complete_null, rel=0.2)
    assert np.mean([float(r) for r in found]) > 2 * null


def test_dead_units_are_flagged_and_do_no_harm():
    latents, factors = rows()
    more = np.hstack([latents, np.zeros((500, 1))])
    assert dci(more, factors).value == pytest.approx(dci(latents, factors).value, rel=1e-9)
    known = dci(latents, factors)
    some = dci(latents, np.hstack([factors, np.ones((500, 1))]))
    assert "dead" in some.flags
    assert some.informative == pytest.approx(known.informative, rel=1e-9)
    assert known.informative == pytest.approx(float(known.informativeness.mean()), rel=1e-12)
    result = dci(latents, np.ones((500, 2)))
    assert np.isnan(result.value)
    assert "dead" in result.flags


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="DCI: expected ridge above 0"):
        DCI(ridge=0.0)
    with pytest.raises(InputError, match="DCI: expected at least two factors, got 1"):
        dci(torch.rand(20, 3), torch.rand(20, 1))
