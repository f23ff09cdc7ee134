"""A batch norm that follows a stream, against closed forms of its mixture."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.layers import UnMixNorm, with_unmix_norm


def norm(dim=3) -> Any:
    torch.manual_seed(0)
    made: Any = nn.BatchNorm2d(dim)
    made.running_mean.copy_(torch.randn(dim))
    made.running_var.copy_(torch.rand(dim) + 0.5)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made.double().eval()


X = 2 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1


@pytest.mark.truth("torch's instance norm")
@torch.no_grad()
def test_one_component_is_instance_norm():
    source = norm()
    expected = nn.functional.instance_norm(X, weight=source.weight, bias=source.bias)
    torch.testing.assert_close(UnMixNorm(source, components=1)(X), expected)


@pytest.mark.truth("closed form: equal components share alike")
@torch.no_grad()
def test_equal_components_mix_source_and_example_by_their_number():
    source, k = norm(), 5
    found = UnMixNorm(source, components=k, spread=0.0, momentum=0.0)(X)
    mu, v = X.mean((2, 3)), X.var((2, 3), correction=0)
    mean = (1 - 1 / k) * source.running_mean + mu / k
    variance = (1 - 1 / k) * source.running_var + v / k
    y = (X - mean[..., None, None]) / (variance[..., None, None] + source.eps).sqrt()
    expected = y * source.weight[:, None, None] + source.bias[:, None, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.truth("one step by hand")
@torch.no_grad()
def test_components_move_towards_their_examples():
    layer = UnMixNorm(norm(), components=1, momentum=0.1)
    old = layer.mean.clone()
    layer(X)
    rate = 1 - 0.9 ** (4 / 64)
    torch.testing.assert_close(layer.mean, old + rate * (X.mean((0, 2, 3)) - old))


def test_the_components_start_around_the_source():
    source = norm(2000)
    layer = UnMixNorm(source, components=16, spread=0.5)
    whole = layer.variance.mean(0) + layer.mean.var(0, correction=0)
    assert float((whole / source.running_var).mean()) == pytest.approx(1.0, abs=0.02)


@torch.no_grad()
def test_an_example_does_not_depend_on_its_batch_but_the_stream_has_an_order():
    together = UnMixNorm(norm(), seed=3)(X)
    alone = UnMixNorm(norm(), seed=3)(X[:1])
    torch.testing.assert_close(together[:1], alone)
    one, other = UnMixNorm(norm()), UnMixNorm(norm())
    for i in range(4):
        one(X[i : i + 1])
        other(X[3 - i : 4 - i])
    assert not torch.equal(one.mean, other.mean)


def test_the_model_itself_stays_and_rows_without_space_are_refused():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), norm().float(), nn.Sequential(nn.BatchNorm2d(3)))
    new = with_unmix_norm(net.eval())
    assert [type(new[1]), type(new[2][0])] == [UnMixNorm, UnMixNorm]
    assert isinstance(net[1], nn.BatchNorm2d)
    with pytest.raises(InputError, match="expected maps"):
        UnMixNorm(norm())(torch.zeros(2, 3))
    with pytest.raises(InputError, match="batch norms, got none"):
        with_unmix_norm(nn.Linear(2, 2))
