"""Coefficients of skips."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import ScaledSkip


@pytest.mark.truth("powers printed in the handbook, and their sum of squares in closed form")
def test_powers():
    found = [ScaledSkip(i).coefficient for i in range(1, 7)]
    assert found == pytest.approx([1, 0.7, 0.49, 0.343, 0.2401, 0.16807])
    assert sum(c * c for c in found) == pytest.approx(1.933645, abs=1e-6)
    far = [ScaledSkip(i).coefficient for i in range(1, 60)]
    assert sum(c * c for c in far) == pytest.approx(1 / (1 - 0.49))
    skips = torch.randn(6, 20_000, 1, generator=torch.Generator().manual_seed(1))
    joined = sum(ScaledSkip(i + 1)(skip) for i, skip in enumerate(skips))
    assert float(joined.var()) == pytest.approx(1.933645, rel=0.05)
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(ScaledSkip(5, kappa=1.0)(x), x)
    torch.testing.assert_close(ScaledSkip(how="root")(x), x / 2**0.5)


@pytest.mark.truth("a squeeze network by hand")
def test_learned():
    layer, x = ScaledSkip(how="learned", dim=4), torch.randn(3, 4, 5, 2)
    assert torch.equal(layer(x), x)
    nn.init.normal_(layer.net[2].weight)
    gate = 2 * torch.sigmoid(layer.net(x.flatten(2).mean(2)))
    torch.testing.assert_close(layer(x)[1, 2], gate[1, 2] * x[1, 2])
    with pytest.raises(InputError, match="a dim for 'learned' only"):
        ScaledSkip(how="learned")
