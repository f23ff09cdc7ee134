"""Attention by running sums, against dense attention with the same features."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from sonde.core import InputError, SondeWarning
from sonde.layers import LinearAttention

N = 11


def made(seed: int = 3, **parameters: Any) -> LinearAttention:
    torch.manual_seed(seed)
    layer = LinearAttention(8, 2, **parameters).double()
    nn.init.normal_(layer.out.weight)
    return layer


def states(rows=2, n=N):
    generator = torch.Generator().manual_seed(5)
    return 2 * torch.randn(rows, n, 8, generator=generator, dtype=torch.float64)


def kernel(layer, q, k):
    """Similarity of a query and a key, from the definition of the features."""
    if layer.feature == "elu":
        plus = lambda x: torch.where(x > 0, x + 1, x.exp())  # noqa: E731
        return plus(q) @ plus(k)
    s = normalize(q, dim=0) @ normalize(k, dim=0)
    return 1 + s + s**2 / 2


def brute(layer, x, prefix):
    separate = "prefix_key" in layer.maps
    q, k, v = (layer.maps[n](x) for n in ("query", "key", "value"))
    heads = torch.zeros_like(x)
    for row in range(len(x)):
        for cut in (slice(0, 4), slice(4, 8)):
            for i in range(x.shape[1]):
                last = i if separate else max(i, prefix - 1)
                pairs = [(k[row, j, cut], v[row, j, cut]) for j in range(last + 1)]
                if separate:
                    own = layer.maps["prefix_key"](x), layer.maps["prefix_value"](x)
                    pairs += [(own[0][row, j, cut], own[1][row, j, cut]) for j in range(prefix)]
                weight = torch.stack([kernel(layer, q[row, i, cut], key) for key, _ in pairs])
                values = torch.stack([value for _, value in pairs])
                heads[row, i, cut] = weight @ values / weight.sum()
    return x + layer.out(heads)


@pytest.mark.truth("dense attention with the kernel of the features, pair by pair")
@pytest.mark.parametrize("projection", ["shared", "separate"])
@pytest.mark.parametrize("feature", ["elu", "taylor"])
@pytest.mark.parametrize("prefix", [0, 4, N])
@torch.no_grad()
def test_every_form_is_dense_attention(feature, projection, prefix, monkeypatch):
    monkeypatch.setattr("sonde.layers.linear_attention.BLOCK", 5)
    x = states()
    given: dict[str, Any] = {"feature": feature, "prefix_projection": projection}
    found = [
        made(**(given | form))(x, prefix=prefix)
        for form in ({"chunk": 4}, {"form": "parallel"}, {"form": "recurrent"})
    ]
    wanted = brute(made(**given), x, prefix)
    for one in found:
        torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.truth("the Jacobian above max(i, prefix - 1) is exactly zero")
@pytest.mark.parametrize("prefix", [0, 4])
def test_no_token_behind_the_prefix_sees_the_future(prefix):
    layer, x = made(chunk=3), states(rows=1)
    jacobian: Any = torch.autograd.functional.jacobian(lambda y: layer(y, prefix=prefix), x)
    moved = jacobian[0, :, :, 0].abs().sum((1, 3))
    for i in range(N):
        last = max(i, prefix - 1)
        assert float(moved[i, last + 1 :].sum()) == 0.0
        assert bool((moved[i, : last + 1] > 0).all())


@pytest.mark.truth("mean squared crosstalk (n - 1) / d of random unit keys, 0 of orthonormal ones")
def test_crosstalk_of_the_state():
    from sonde.layers.linear_attention import causal_sums

    generator = torch.Generator().manual_seed(0)
    n, d, draws = 12, 32, 400
    keys = normalize(torch.randn(draws, 1, n, d, generator=generator), dim=-1)
    values = torch.randn(draws, 1, n, d, generator=generator)
    start = torch.zeros(draws, 1, d, d)
    state, _ = causal_sums(keys.flip(2), keys, values, start, 5)  # the last query meets all keys
    error = state[:, 0, -1] - values[:, 0, 0]
    assert float(error.square().mean()) == pytest.approx((n - 1) / d, rel=0.05)
    orthonormal = torch.linalg.qr(torch.randn(d, n, generator=generator))[0].T[None, None]
    whole, _ = causal_sums(orthonormal.flip(2), orthonormal, values[:1], start[:1], 64)
    torch.testing.assert_close(whole[0, 0, -1], values[0, 0, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_text_that_is_shorter_than_the_prefix_is_told():
    layer, x = made(), states(rows=1, n=3)
    with pytest.warns(SondeWarning, match="the prefix of 4 tokens covers the whole text of 3"):
        alone = layer(x, prefix=4)
    padded, real = torch.cat([x, x], 1), torch.arange(6)[None] < 3
    with pytest.warns(SondeWarning, match="the prefix of 4 tokens covers the whole text of 3"):
        found = layer(padded, real, prefix=4)
    torch.testing.assert_close(found[:, :3], alone)
    torch.testing.assert_close(alone, brute(layer, x, 3))


def test_what_is_wrong_is_said():
    with pytest.raises(InputError, match=r"a dim that 3 heads divide .* got 8 and 64"):
        LinearAttention(8, 3)
    with pytest.raises(InputError, match="a prefix of 0 or more, got -1"):
        made()(states(), prefix=-1)
