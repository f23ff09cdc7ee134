"""Learned distributions against known sources, and the code against the estimate."""

import math
from itertools import pairwise

import pytest
import torch

from sonde.compress import EntropyBottleneck
from sonde.core import InputError, StateError
from sonde.engine.steps import Descent


def source(n, draw):
    """Three channels: normal, Laplace, and uniform on a few steps."""
    normal = 1.7 * torch.randn(n, generator=draw) + 4.3
    flat = torch.rand(n, generator=draw) - 0.5
    laplace = -6.0 * flat.sign() * torch.log1p(-2 * flat.abs()) - 11.0
    return torch.stack([normal, laplace, 9.0 * torch.rand(n, generator=draw)], 1)


def learned():
    bottleneck, draw = EntropyBottleneck(3).train(), torch.Generator().manual_seed(0)
    descent = Descent("test", bottleneck.parameters(), 3e-2)
    descent.run(lambda _: bottleneck(source(1000, draw), draw)[1].mean(), range(350))
    descent = Descent("test", bottleneck.parameters(), 3e-3)
    descent.run(lambda _: bottleneck(source(1500, draw), draw)[1].mean(), range(80))
    return bottleneck.eval()


@pytest.fixture(scope="module")
def bottleneck():
    return learned()


def entropy(cdf, middle):
    """Bits of a source that is rounded to whole steps from a median."""
    edges = [cdf(middle + k - 0.5) for k in range(-400, 401)]
    masses = [b - a for a, b in pairwise(edges)]
    return -sum(m * math.log2(m) for m in masses if m > 0)


@pytest.mark.truth("the entropy of known sources that are rounded")
def test_the_rate_is_the_entropy_of_the_source(bottleneck):
    middle = bottleneck.medians().tolist()
    assert middle == pytest.approx([4.3, -11.0, 4.5], abs=0.25)
    wanted = (
        entropy(lambda v: 0.5 * (1 + math.erf((v - 4.3) / 1.7 / 2**0.5)), middle[0])
        + entropy(lambda v: _laplace((v + 11.0) / 6.0), middle[1])
        + entropy(lambda v: min(1.0, max(0.0, v / 9.0)), middle[2])
    )
    x = source(40_000, torch.Generator().manual_seed(8))
    with torch.no_grad():
        latent, bits = bottleneck(x)
    assert float((latent - x).abs().max()) <= 0.5 + 1e-4
    assert 0.995 * wanted < float(bits.mean()) < 1.015 * wanted


def _laplace(v):
    return 0.5 * math.exp(v) if v < 0 else 1 - 0.5 * math.exp(-v)


@pytest.mark.truth("the estimated bits, and rounding by hand")
def test_the_code_is_as_long_as_the_estimate(bottleneck):
    codec, x = bottleneck.codec(), source(5000, torch.Generator().manual_seed(3))
    with torch.no_grad():
        latent, bits = bottleneck(x)
    stream = codec.encode(x)
    estimate = float(bits.sum()) / 8
    assert abs(len(stream) - 29 - estimate) < 0.01 * estimate + 4
    torch.testing.assert_close(codec.decode(stream), latent, rtol=0, atol=1e-4)
    torch.testing.assert_close(codec.tables.sum(1), torch.ones(3).double(), rtol=0, atol=1e-12)
    assert codec.tables.shape[1] < 250  # of 8,193 steps; the widest channel has a spread of 8.5
    far = torch.tensor([[4.3, -11.0, 4.5], [3e6, 2.0, -7e7], [4.3, -9e4, 1e3]])
    assert float((codec.decode(codec.encode(far)) - far).abs().max()) <= 4.0  # of 7e7, in float32


def test_axes_of_a_map_are_kept(bottleneck):
    x = source(24, torch.Generator().manual_seed(1)).reshape(2, 3, 4, 3).movedim(3, 1)
    with torch.no_grad():
        latent, bits = bottleneck(x)
        rows, each = bottleneck(x.movedim(1, 3).reshape(-1, 3))
    torch.testing.assert_close(latent.movedim(1, 3).reshape(-1, 3), rows)
    torch.testing.assert_close(bits, each.reshape(2, 12).sum(1))


def test_other_tables_are_refused(bottleneck):
    other = EntropyBottleneck(3).codec()
    with pytest.raises(StateError, match="fitted to other rows"):
        other.decode(bottleneck.codec().encode(torch.zeros(2, 3)))
    with pytest.raises(InputError, match=r"last axis of size 3, .* got shape \(2, 4\)"):
        other.encode(torch.zeros(2, 4))
