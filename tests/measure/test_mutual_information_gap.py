import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

import independent_information
from sonde.core.errors import InputError
from sonde.measure import MutualInformationGap, mutual_information_gap
from sonde.measure._factors import largest_gap


@pytest.mark.truth("the two largest of each line of the table")
def test_known_values():
    table = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.1, 0.6]])
    want = independent_information.information_gap(table)
    assert float(largest_gap(table).mean()) == pytest.approx(want, rel=1e-6)


def planted(n=600, seed=0, noise=0.3):
    """Return two latents that follow a factor each, one of noise, and the factors."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(0, 5, n), rng.random(n) < 0.3], 1).astype(float)
    latents = np.hstack([factors, np.zeros((n, 1))]) + noise * rng.standard_normal((n, 3))
    return latents, factors


@pytest.mark.truth("scikit-learn's mutual information of rows binned by rank")
def test_is_the_peers_information():
    latents, factors = planted()
    bins = latents.argsort(0).argsort(0) * 20 // 600
    table = np.array(
        [
            [mutual_info_score(b, f) / mutual_info_score(f, f) for b in bins.T]
            for f in factors.T.astype(int)
        ]
    )
    result = mutual_information_gap(latents, factors)
    np.testing.assert_allclose(result.information, table, rtol=1e-10)
    ordered = np.sort(table, 1)
    assert result.value == pytest.approx((ordered[:, -1] - ordered[:, -2]).mean(), rel=1e-10)
    assert result.best.tolist() == [0, 1]


@pytest.mark.truth("planted copies and unrelated sides")
def test_copies_have_no_gap_and_unrelated_sides_the_null():
    latents, factors = planted(noise=0.0)
    assert mutual_information_gap(latents, factors).value == pytest.approx(1.0, abs=0.01)
    assert mutual_information_gap(latents[:, [0, 1, 0, 1]], factors).value == pytest.approx(0.0)
    found = [mutual_information_gap(planted(seed=s)[0], planted(seed=s + 50)[1]) for s in range(10)]
    nulls = [float(torch.as_tensor(r.null)) for r in found]
    assert np.mean([float(r) for r in found]) == pytest.approx(np.mean(nulls), rel=0.35)
    assert max(float(r) for r in found) < 0.1


@pytest.mark.truth("the spread over fresh draws")
def test_standard_error():
    found = [mutual_information_gap(*planted(300, seed=s, noise=0.6)) for s in range(12)]
    spread = np.std([float(r) for r in found], ddof=1)
    assert 0.6 < np.mean([float(torch.as_tensor(r.se)) for r in found]) / spread < 1.5


def test_a_constant_factor_is_flagged_and_left_out():
    latents, factors = planted()
    more = np.hstack([factors, np.ones((600, 1))])
    result = mutual_information_gap(latents, more)
    assert "dead" in result.flags
    known = mutual_information_gap(latents, factors)
    assert known.flags == ()
    assert result.value == pytest.approx(known.value, rel=1e-12)
    assert "few_rows" in mutual_information_gap(latents[:99], factors[:99]).flags


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="MutualInformationGap: expected n_bins of at least 2"):
        MutualInformationGap(n_bins=1)
    with pytest.raises(InputError, match="expected at least two latents, got 1"):
        mutual_information_gap(torch.rand(50, 1), torch.zeros(50, 2))
