import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from sonde.core.errors import InputError, StateError
from sonde.measure import UnitEntropy, unit_entropy


@pytest.mark.truth("numpy.histogram and scipy.stats.entropy over all rows in memory")
def test_definition():
    x = np.random.default_rng(0).standard_normal((200, 3)) * [1.0, 5.0, 0.1]
    result: Any = unit_entropy(x, n_bins=8)
    for unit in range(3):
        edges = [-np.inf, *result.edges[unit].tolist(), np.inf]
        counts = np.histogram(x[:, unit], edges)[0]
        want = scipy.stats.entropy(counts) + (np.sum(counts > 0) - 1) / 400
        assert float(result.entropy[unit]) == pytest.approx(want, rel=1e-9)
    low, high = np.quantile(x, [0.01, 0.99], axis=0, method="inverted_cdf")
    np.testing.assert_allclose(result.edges[:, 0], low + (high - low) / 8, rtol=1e-6)


@pytest.mark.truth("entropy of a normal variable in equal bins")
def test_null_is_a_normal_unit():
    result: Any = unit_entropy(np.random.default_rng(1).standard_normal((20000, 6)))
    assert result.value == pytest.approx(result.null, abs=0.05)
    ends = scipy.stats.norm.ppf([0.1, 0.9])  # the outer two of five bins are open
    shares = np.diff(
        scipy.stats.norm.cdf([-np.inf, *np.linspace(ends[0], ends[1], 6)[1:-1], np.inf])
    )
    many = np.random.default_rng(1).standard_normal((5000, 2))
    few: Any = unit_entropy(many, n_bins=5, trim=0.1)
    assert few.null == pytest.approx(scipy.stats.entropy(shares), rel=1e-6)


def test_unchanged_by_scale_and_shift_of_units():
    x = np.random.default_rng(2).standard_normal((240, 4))
    of: Any = unit_entropy
    want = of(x, n_bins=10).entropy
    got = of(x * [2.0, 0.5, 4.0, 8.0] + [0.0, 1.0, 2.0, 3.0], n_bins=10).entropy
    torch.testing.assert_close(got, want, atol=0.05, rtol=0)


def test_a_constant_unit_has_none():
    x = torch.cat([torch.full((500, 1), 3.0), torch.linspace(0, 1, 500)[:, None]], dim=1)
    result: Any = unit_entropy(x, n_bins=10)
    entropy = result.entropy
    assert float(entropy[0]) == 0.0
    assert float(entropy[1]) == pytest.approx(math.log(10), abs=0.02)


def test_bits():
    x = torch.linspace(0, 1, 2000)[:, None]
    assert unit_entropy(x, n_bins=8).bits().value == pytest.approx(3.0, abs=0.02)


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="UnitEntropy: expected n_bins of at least 2"):
        UnitEntropy(n_bins=1)
    with pytest.raises(InputError, match=r"UnitEntropy: expected trim in \[0, 0.5\), got 0.5"):
        UnitEntropy(trim=0.5)
    with pytest.raises(
        StateError, match=r"no row to fit on at x.*too large to square: above 1e\+15"
    ):
        unit_entropy(torch.full((50, 2), 1e17))
