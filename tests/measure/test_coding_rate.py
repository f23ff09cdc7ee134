import math

import numpy as np
import pytest
import torch

import independent_spectra
from fixture_rows import X
from measure.digits import DIGITS
from sonde.core.errors import InputError
from sonde.measure import coding_rate

ONE_HOT = np.eye(8)[np.repeat(np.arange(4), 10)]


@pytest.mark.truth("singular values of the unit rows in numpy")
def test_known_values():
    for rows, eps2 in ((ONE_HOT, 0.01), (np.eye(8), 0.01), (DIGITS, 0.25)):
        want = independent_spectra.coding_rate(rows, eps2)
        assert coding_rate(rows, eps2=eps2).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("numpy's determinant of the rows' Gram matrix")
def test_rows_and_units_give_one_determinant():
    z = (X / X.norm(dim=1, keepdim=True)).numpy()
    want = np.linalg.slogdet(np.eye(60) + 5 / (60 * 0.5) * z @ z.T)[1] / 2
    assert coding_rate(X).value == pytest.approx(want, rel=1e-10)


@pytest.mark.truth("simulated rows of any direction")
def test_null_and_error():
    rng = np.random.default_rng(0)
    found = [coding_rate(rng.standard_normal((60, 20)) * rng.random((60, 1))) for _ in range(20)]
    values = np.array([float(r) for r in found])
    assert values.mean() == pytest.approx(float(torch.as_tensor(found[0].null)), rel=0.01)
    scale = np.linspace(4.0, 1.0, 6)
    spread = [coding_rate(rng.standard_normal((300, 6)) * scale) for _ in range(20)]
    sd = np.std([float(r) for r in spread], ddof=1)
    assert np.mean([float(torch.as_tensor(r.se)) for r in spread]) / sd == pytest.approx(1, abs=0.4)


@pytest.mark.truth("the same rows before they shrank")
def test_the_length_of_a_row_says_nothing():
    length = torch.logspace(-30, 8, 60, dtype=torch.float64)[:, None]
    assert coding_rate(X * length).value == pytest.approx(coding_rate(X).value, rel=1e-10)


def test_rows_without_a_direction():
    some, none = coding_rate(torch.cat([X, torch.zeros(3, 5)])), coding_rate(torch.zeros(6, 2))
    assert some.n_zero == 3
    assert "dead" in some.flags
    assert math.isnan(float(none))
    assert "dead" in none.flags


def test_an_error_of_zero_is_refused():
    with pytest.raises(InputError, match="CodingRate: expected eps2 above 0, got 0"):
        coding_rate(X, eps2=0.0)


@pytest.mark.truth("rows of all directions alike, which have the largest rate that rows can have")
def test_the_range_ends_at_rows_of_all_directions():
    found = coding_rate(np.concatenate([np.eye(5), -np.eye(5)]), eps2=0.3)
    assert found.range[1] == pytest.approx(5 / 2 * math.log(1 + 1 / 0.3))
    assert found.value == pytest.approx(found.range[1])
