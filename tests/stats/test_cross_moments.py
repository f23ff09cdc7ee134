import pytest
import torch

from sine_rows import sine_rows
from sonde.stats import CrossMoments, Moments


@pytest.mark.truth("numpy.cov of the joined columns")
def test_cross_scatter():
    x, y = sine_rows()
    statistic = CrossMoments()
    state = statistic.merge(statistic.observe(x[:13], y[:13]), statistic.observe(x[13:], y[13:]))
    want = torch.cov(torch.cat([x, y], 1).T, correction=0)[:5, 5:]
    torch.testing.assert_close(state.covariance, want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.mean_x, x.mean(0))
    torch.testing.assert_close(state.mean_y, y.mean(0))


@pytest.mark.truth(
    "numbers computed with numpy: sum of squared canonical correlations / 4, linear CKA"
)
def test_canonical_correlations_of_sines():
    x, y = sine_rows()
    cross = CrossMoments().observe(x, y).cross
    sx, sy = Moments().observe(x).scatter, Moments().observe(y).scatter
    squares = torch.trace(torch.linalg.solve(sx, cross) @ torch.linalg.solve(sy, cross.T))
    assert float(squares) / 4 == pytest.approx(0.1966884768, rel=1e-8)
    cka = cross.square().sum() / (sx.norm() * sy.norm())
    assert float(cka) == pytest.approx(0.1760391426, rel=1e-8)
