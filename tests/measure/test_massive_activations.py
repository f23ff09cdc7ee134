import math

import pytest
import torch

from sonde.core.errors import InputError
from sonde.measure import MassiveActivations, massive_activations


def _rows():
    return torch.randn(1000, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.truth("definition on all rows in memory")
def test_ratio():
    x = _rows().relu()
    x[5, 11] = 4000.0
    result = massive_activations(x)
    rms = x.square().mean(0).sqrt()
    assert result.value == pytest.approx(4000.0 / float(rms.median()), rel=1e-9)
    assert torch.nonzero(result.massive).flatten().tolist() == [11]
    assert not bool(result.constant.any())


def test_a_bias_is_called_constant():
    x = _rows()
    x[:, 3] += 3000.0
    result = massive_activations(x)
    assert torch.nonzero(result.constant).flatten().tolist() == [3]
    assert result.outlier_units


@pytest.mark.truth("simulated normal rows")
def test_healthy_rows_are_near_the_null():
    result = massive_activations(_rows())
    assert result.value == pytest.approx(result.null, rel=0.15)
    assert not bool(result.massive.any())
    assert not result.outlier_units


def test_dead_units_do_not_move_the_median():
    x = _rows()
    want = massive_activations(x[:, 120:]).value
    x[:, :120] = 0.0
    assert massive_activations(x).value == pytest.approx(want)


def test_all_zero_is_nan_and_dead():
    result = massive_activations(torch.zeros(4, 3))
    assert math.isnan(result.value)
    assert result.flags == ("dead",)


def test_wrong_threshold_is_named():
    with pytest.raises(InputError, match="MassiveActivations: expected a positive threshold"):
        MassiveActivations(threshold=0.0)
