"""Predictions slice by slice: what they may read, what they cost, and their code."""

import itertools
import math

import pytest
import torch

from sonde.compress import SliceContext
from sonde.core import InputError, StateError
from sonde.engine.steps import Descent, seeded


def moved(**given):
    """A context whose predictions depend on all that they may read."""
    with seeded(4) as draw:
        context = SliceContext(5, (1, 1, 3), width=8, **given).eval()
        with torch.no_grad():
            for p in context.parameters():
                p += 0.2 * torch.randn(p.shape, generator=draw)
            for net in context.ahead:
                net[-1].bias[len(net[-1].bias) // 2 :] += math.log(6.0)
    return context


def latent(n=2, seed=0):
    return 5 * torch.randn(n, 5, 4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.truth("another number at every place, pass by pass")
@pytest.mark.parametrize("points", [0, 9])
def test_no_prediction_reads_what_comes_later(points):
    context, y = moved(points=points), latent(1)
    order = torch.full(y.shape[1:], -1)
    for step, (channels, places) in enumerate(context.passes(y)):
        order[channels] = torch.where(places, step, order[channels])
    assert order.min() == 0
    assert order.unique().tolist() == list(range(6))

    def predictions(y):
        known, found = torch.zeros_like(y), []
        for step, (channels, places) in enumerate(context.passes(y)):
            found.append(torch.cat(context.predicted(step, known, None)))
            known[:, channels] = torch.where(places, y[:, channels], known[:, channels])
        return found

    before, reached = predictions(y), 0
    for place in ((0, 1, 1), (0, 2, 3), (1, 0, 0), (1, 3, 2), (3, 2, 2), (4, 0, 5)):
        other = y.clone()
        other[0][place] += 3.0
        own = int(order[place])
        changed = [not a.equal(b) for a, b in zip(predictions(other), before, strict=True)]
        assert not any(changed[: own + 1])
        reached += sum(changed)
        assert all(changed[own + 1 :])
    assert reached > 6


@pytest.mark.truth("normal masses by erf, and the estimate of bits")
@pytest.mark.parametrize(
    "given", [{}, {"attention": False}, {"checkerboard": False}, {"hyper": 2}, {"points": 3}]
)
def test_the_code_is_as_long_as_the_estimate(given):
    context, y = moved(**given), latent()
    hyper = torch.rand(2, 2, 4, 6) if given.get("hyper") else None
    with torch.no_grad():
        found, bits = context(y, hyper)
    codec = context.codec(hyper)
    x = y.movedim(1, -1)
    stream = codec.encode(x)
    assert abs(8 * (len(stream) - 60) - float(bits.sum())) < 0.03 * float(bits.sum()) + 250
    again = codec.decode(stream)
    assert float((again - x).abs().max()) <= 0.5 + 1e-4
    assert float((again - found.movedim(1, -1)).abs().mean()) < 0.05  # means to 1/64
    lost = float((again - x).square().sum() / x.square().sum())
    assert lost < codec.most_lost(x)
    assert codec.most_lost(3 * torch.ones(2, 4, 6, 5)) == pytest.approx(0.5**2 / 9, rel=1e-4)


@pytest.mark.truth("loops over places and points, with interpolation of four places by hand")
def test_attention_to_learned_places():
    context, x = moved(points=3).double(), latent().double()
    layer = context.wide["2"]
    with torch.no_grad():
        layer.offset.weight.mul_(0.3)
        found, query = layer(x), layer.query(x)
        key, value, step = layer.key(x), layer.value(x), layer.offset(query)
    high, wide = x.shape[2:]
    inside = 0

    def at(maps, row, up, across):
        total = torch.zeros(8).double()
        for i in (math.floor(up), math.floor(up) + 1):
            for j in (math.floor(across), math.floor(across) + 1):
                if 0 <= i < high and 0 <= j < wide:
                    total = total + (1 - abs(up - i)) * (1 - abs(across - j)) * maps[row, :, i, j]
        return total

    for row, i, j in itertools.product(range(2), range(high), range(wide)):
        steps = step[row, :, i, j].reshape(3, 2).tolist()
        at_points = [(i + up, j + across) for up, across in steps]
        inside += sum(0 < up < high - 1 and 0 < across < wide - 1 for up, across in at_points)
        scores = [query[row, :, i, j] @ at(key, row, *p) / 8**0.5 for p in at_points]
        weight = torch.stack(scores).softmax(0)
        wanted = sum(w * at(value, row, *p) for w, p in zip(weight, at_points, strict=True))
        torch.testing.assert_close(found[row, :, i, j], wanted)
    assert inside > 20


def test_offsets_start_around_the_place_and_learn():
    context = SliceContext(2, (1, 1), width=4, points=9).train()
    layer = context.wide["2"]
    start = layer.offset.bias.reshape(9, 2)
    assert start[:3].tolist() == [[0, -1], [0, 1], [-1, 0]]
    assert start[8].tolist() == [0, -2]
    context(latent()[:, :2], draw=torch.Generator().manual_seed(0))[1].sum().backward()
    assert float(layer.offset.weight.grad.abs().sum()) > 0
    with pytest.raises(InputError, match="and attention if there are any, got points=2"):
        SliceContext(5, attention=False, points=2)


@pytest.mark.essential
@pytest.mark.truth("the entropy of independent normal numbers")
def test_without_context_the_rate_is_that_of_each_channel():
    spread = torch.tensor([0.8, 3.0, 9.0, 20.0, 1.5])[:, None, None]
    with seeded(0) as draw:
        context = SliceContext(5, (5,), width=4, checkerboard=False).train()
        descent = Descent("test", context.parameters(), 2e-2)

        def loss(_):
            y = spread * torch.randn(16, 5, 4, 6, generator=draw) + 2.0
            return context(y, draw=draw)[1].mean()

        descent.run(loss, range(300))
        y = spread * torch.randn(400, 5, 4, 6, generator=draw) + 2.0
    with torch.no_grad():
        bits = float(context.eval()(y)[1].mean())
        mean, _scale = context.predicted(0, torch.zeros_like(y[:1]), None)
    assert float(mean.std((2, 3)).max()) < 1e-6  # nothing known: one mean for a channel
    wanted = 24 * sum(
        _bits(float(s), float(m)) for s, m in zip(spread, mean[0, :, 0, 0], strict=True)
    )
    assert wanted < bits < 1.02 * wanted


def _bits(spread, mean):
    """Bits of 2 + spread N(0, 1), rounded from a mean."""
    edges = [0.5 * math.erfc(-(mean + k - 0.5 - 2.0) / spread / 2**0.5) for k in range(-200, 202)]
    masses = [b - a for a, b in itertools.pairwise(edges)]
    return -sum(m * math.log2(m) for m in masses if m > 0)


def test_gradients_are_finite_at_spreads_beyond_all_bounds():
    context = moved().train()
    with torch.no_grad():
        for net in context.ahead:
            net[-1].bias[len(net[-1].bias) // 2 :] += 200.0
    context(latent(), draw=torch.Generator().manual_seed(0))[1].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in context.parameters())


def test_other_nets_and_damaged_predictions_are_refused():
    context, x = moved(), latent().movedim(1, -1)
    stream = context.codec().encode(x)
    with pytest.raises(StateError, match="fitted to other rows"):
        SliceContext(5).eval().codec().decode(stream)
    context.near[3].register_forward_hook(lambda _m, _i, out: out + 0.4)
    with pytest.raises(StateError, match=r"other rows|checksum of the decoded|does not fit"):
        context.codec().decode(stream)
    with pytest.raises(InputError, match=r"add up to 5 channels, got \(2, 2\)"):
        SliceContext(5, (2, 2))
    with pytest.raises(InputError, match="2 channels that encoder and decoder share, got 0"):
        moved(hyper=2)(latent())
