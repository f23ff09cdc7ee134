"""Caches of several layers as one matrix of low rank."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import models
import sonde
from attention_models import TEXTS
from cache_name import CACHE
from sonde import Model
from sonde.compress import CrossLayerCache, cross_layer_moments
from sonde.core import InputError, SiteError
from sonde.data import open_inputs
from sonde.tap.cache.layer import RealTokens
from sonde.tap.cache.packed import PackingGroup, PackingLayer


def matrix(x):
    """Return the numbers of each token of all heads side by side."""
    return x.transpose(1, 2).flatten(2).double()


def drawn(heads=6, n=20, width=5, seed=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, heads, n, width, generator=draw), torch.ones(2, n, dtype=torch.bool)


@pytest.mark.truth("Eckart and Young: the singular values that the rank leaves out")
def test_what_is_lost_are_the_smallest_singular_values():
    x, real = drawn()
    packed = CrossLayerCache(layers=2, keep=0.5).pack(x, 2 * x, real)
    for found, given, weight in zip(packed.unpack(), (x, 2 * x), (0.8, 1.2), strict=True):
        rank = int(weight * 0.5 * 20 * 30 / 50)
        lost = torch.linalg.svdvals(matrix(given))[:, rank:].square().sum(1)
        assert float(lost.min()) > 1
        torch.testing.assert_close((matrix(found) - matrix(given)).square().sum((1, 2)), lost)
    assert packed.size_bytes == 4 * 2 * (4 + 7) * (20 + 30)
    least = CrossLayerCache(layers=2, keep=0.01).pack(x, 2 * x, real)
    assert least.size_bytes == 4 * 2 * (1 + 1) * (20 + 30)


def test_layers_that_are_alike_cost_one_and_unlike_layers_gain_nothing():
    x, real = drawn(heads=2, n=12, width=3)
    alike, unlike = torch.cat([x, x, -2 * x], 1), torch.cat([x, *drawn(4, 12, 3, 5)[:1]], 1)
    cache = CrossLayerCache(layers=3, keep=0.85)  # rank 7 for values: 6 are those of one layer
    lost = [
        float((cache.pack(y, y, real).unpack()[1] - y).norm() / y.norm()) for y in (alike, unlike)
    ]
    assert lost[0] < 1e-5 < 0.2 < lost[1]


@pytest.mark.truth("the plain model: with all directions nothing is lost but rounding")
@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_keys_are_turned_back_and_again_with_padding_beams_and_a_second_turn(name):
    net: Any = TEXTS[name]().eval()
    config = net.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    every = torch.eye(2 * heads * config.hidden_size // config.num_attention_heads)
    whole = CrossLayerCache(layers=2, chunk=3, recent=1, directions=(every, every))
    last = CrossLayerCache(
        layers=1, chunk=3, recent=1, directions=(every[::2, ::2], every[::2, ::2])
    )
    ids = torch.randint(5, models.VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    way = {"num_beams": 3, "do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
    with sonde.caching(net, lambda number: last if number == 2 else whole) as cache:
        out = net.generate(ids, attention_mask=mask, **{CACHE: cache}, **way)
        assert [len(group.layers) for group in cache.groups] == [2, 1]
        assert all(len(group.chunks) == 5 for group in cache.groups)
    assert torch.equal(out, net.generate(ids, attention_mask=mask, **way))
    place = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), sonde.caching(net, lambda n: last if n == 2 else whole) as cache:
        plain = DynamicCache(config=config)
        for start, stop in ((0, 7), (7, 9), (9, 11)):
            given = {"attention_mask": mask[:, :stop], "position_ids": place[:, start:stop]}
            found, expected = (
                net(ids[:, start:stop], **given, **{CACHE: x}).logits for x in (cache, plain)
            )
            real = mask[:, start:stop].bool()
            torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.truth("singular vectors of the plain cache's keys and values over all texts")
def test_fitted_directions_are_the_best_for_the_texts():
    net: Any = TEXTS["gpt2"]().eval()
    draw = torch.Generator().manual_seed(8)
    texts = [torch.randint(5, models.VOCABULARY, (n,), generator=draw) for n in (12, 7, 9)]
    model = Model(net, config=net.config, task="causal")
    inputs = open_inputs(model, [{"input_ids": x} for x in texts], batch_size=2)
    moments = cross_layer_moments(model, inputs, 2, progress=False)
    assert moments.layers == ((0, 1), (2,))
    found = moments.caches(0.3, chunk=4, recent=0)
    rows = []
    for text in texts:
        plain: Any = DynamicCache(config=net.config)
        with torch.no_grad():
            net(text[None], **{CACHE: plain})
        rows.append(torch.cat([matrix(x.values)[0] for x in plain.layers[:2]], 1))
    whole = torch.cat(rows)
    assert found[0].directions is not None
    basis = found[0].directions[1].double()
    assert basis.shape == (64, 23)  # 1.2 * 0.3 * 64
    lost = (whole - whole @ basis @ basis.T).square().sum()
    torch.testing.assert_close(lost, torch.linalg.svdvals(whole)[23:].square().sum())
    with torch.no_grad(), sonde.caching(net, found.__getitem__) as cache:
        net(texts[0][None], **{CACHE: cache})
    factors = 4 * sum(x.numel() for one in (found[0], found[2]) for x in one.directions or ())
    coordinates = 4 * 12 * (15 + 23 + 7 + 11)
    assert cache.size_bytes == factors + coordinates


def test_heads_of_other_widths_and_shares_of_nothing_are_refused():
    with pytest.raises(InputError, match=r"keep in \(0, 1\], got 0\.0"):
        CrossLayerCache(keep=0.0)
    group = PackingGroup(CrossLayerCache(layers=2, chunk=1, recent=0))
    layers = [PackingLayer(group) for _ in range(2)]
    for layer in layers:
        layer.real = RealTokens(torch.ones(1, 2, dtype=torch.bool))
    layers[0].update(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4))
    with pytest.raises(SiteError, match=r"heads of the same width.*\[4, 6\]"):
        layers[1].update(torch.zeros(1, 2, 2, 6), torch.zeros(1, 2, 2, 6))
