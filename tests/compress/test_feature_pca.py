"""Features by components, against the theory of rate and distortion."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from sonde.compress import FeaturePCA
from sonde.core import InputError, StateError
from sonde.stats import Moments

SPREADS = np.array([6.0, 3.1, 1.7, 0.9, 0.2, 0.01])


def rows(n=6000, seed=0):
    draw = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(9))).Q
    return (torch.randn(n, 6, generator=draw) * torch.tensor(SPREADS).float()) @ turn.T + 3.0


def rate_of(level):
    """Bits a coordinate at a water level, by the theory of normal rows."""
    return np.maximum(0, 0.5 * np.log2(SPREADS**2 / level)).mean()


def solved(function, wanted):
    return brentq(lambda level: function(level) - wanted, 1e-12, 36.0)


@pytest.mark.truth("reverse water-filling by bisection")
@pytest.mark.parametrize("bits", [0.4, 1.5, 4.0])
def test_rate_and_distortion_of_normal_rows(bits):
    codec, x = FeaturePCA.fit(rows(seed=1), bits), rows()
    level = solved(rate_of, bits)
    assert codec.step == pytest.approx((12 * level) ** 0.5, rel=0.05)
    assert codec.axes.shape[1] == (level < SPREADS**2).sum()
    stream = codec.encode(x)
    lost = float((codec.decode(stream) - x).double().square().sum(1).mean())
    most = np.minimum(SPREADS**2, level).sum()
    assert lost < 1.03 * most
    if bits == 4.0:
        assert lost > 0.97 * most
    least = rate_of(solved(lambda d: np.minimum(SPREADS**2, d).sum(), lost))
    assert 0.0 < 8 * len(stream) / x.numel() - least < 0.26


@pytest.mark.truth("moments of two shards, merged")
def test_shards_give_the_same_code():
    x = rows(500)
    moments = Moments().merge(Moments().observe(x[:123]), Moments().observe(x[123:]))
    one, two = FeaturePCA.fit(x), FeaturePCA.fit(moments)
    torch.testing.assert_close(one.variances, two.variances)
    assert one.step == pytest.approx(two.step)


def test_no_bits_give_the_mean():
    codec = FeaturePCA.fit(rows(90), 0)
    assert codec.axes.shape == (6, 0)
    found = codec.decode(codec.encode(rows(7)))
    torch.testing.assert_close(found, rows(90).mean(0).expand(7, 6))


def test_what_was_not_fitted_is_refused():
    codec = FeaturePCA.fit(rows(100))
    with pytest.raises(StateError, match="fitted to other rows"):
        FeaturePCA.fit(rows(101)).decode(codec.encode(rows(4)))
    with pytest.raises(InputError, match=r"within 1,048,576 steps, got a number of"):
        codec.encode(rows(4) * 1e9)
    with pytest.raises(InputError, match="0 to 32 bits, got -1"):
        FeaturePCA.fit(rows(10), -1)


@pytest.mark.parametrize("n", [0, 9])
def test_rows_without_a_finite_covariance_are_refused(n):
    broken = rows(9)[:n].clone()
    broken[3:4, 0] = torch.nan
    with pytest.raises(InputError, match=f"at least one row of finite numbers, got {n} rows"):
        FeaturePCA.fit(broken)
