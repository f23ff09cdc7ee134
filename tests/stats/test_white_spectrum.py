import pytest
import torch

from sonde.stats.white_spectrum import white_eigenvalues, white_mean


@pytest.mark.truth("second moment of the Marchenko-Pastur law, 1 + dim / n")
@pytest.mark.parametrize(("dim", "n"), [(64, 256), (512, 1024), (512, 256), (8, 8)])
def test_second_moment(dim, n):
    rank, square = white_mean(torch.square, dim, n)
    assert rank == min(dim, n)
    assert rank * square == pytest.approx(dim * (1 + dim / n), rel=1e-6)


@pytest.mark.truth("simulated white rows")
@pytest.mark.parametrize("function", [torch.sqrt, torch.log])
def test_other_averages(function):
    x = torch.randn(1200, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen = function(torch.linalg.eigvalsh(x.T @ x / 1200)).mean()
    assert white_mean(function, 300, 1200)[1] == pytest.approx(float(seen), abs=0.01)


def test_weights_sum_to_one():
    assert float(white_eigenvalues(10, 100)[2].sum()) == pytest.approx(1.0)
