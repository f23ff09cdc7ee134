import numpy as np
import pytest
import torch

from sonde.measure import Norms, norms


@pytest.mark.truth("numpy over all rows in memory")
def test_definition():
    x = np.random.default_rng(0).standard_normal((2000, 16)) * 3.0
    length = np.linalg.norm(x, axis=1)
    result = norms(x)
    assert result.mean == pytest.approx(length.mean(), rel=1e-9)
    assert result.rms == pytest.approx(np.sqrt((length**2).mean()), rel=1e-9)
    assert result.value == pytest.approx(np.median(length), rel=0.02)


def test_first_tokens_are_apart_and_do_not_move_the_median():
    x = torch.ones(400, 4)
    position = torch.arange(400) % 20
    x[position == 0] *= 1000.0
    result = Norms().fit(x, position=position, ids=(torch.arange(400) // 20).tolist())
    assert result.value == pytest.approx(2.0, rel=0.1)
    assert float(result.medians[0]) == pytest.approx(2000.0, rel=0.1)
    assert float(result.energy[0]) > 0.99


def test_rows_of_zeros_are_dead():
    assert norms(torch.zeros(4, 3)).flags == ("dead",)


@pytest.mark.truth("numpy over all rows in memory")
@pytest.mark.parametrize("scale", [1e-20, 1e12])
def test_a_median_beyond_the_histogram_is_not_made_up(scale: float):
    x = np.random.default_rng(0).standard_normal((200, 16)) * scale
    result = norms(x)
    assert np.isnan(float(result))
    assert bool(result.medians.isnan().all())
    assert result.flags == ("clipped",)
    assert result.mean == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-9)
