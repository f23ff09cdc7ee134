"""Codebooks: nearest codes, residual stages, own values of each unit, moving averages."""

import copy
import math
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sonde.core.errors import InputError, ShapeError
from sonde.layers import VectorQuantizer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("brute force over all distances")
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_and_stages(metric):
    layer = VectorQuantizer(3, 7, k=2, stages=2, metric=metric, update="fixed").double()
    x, rest, wanted = draw(4, 5, 3), draw(4, 5, 3), torch.zeros(4, 5, 3).double()
    for codes in layer.codes:
        near = torch.zeros(4, 5, 3).double()
        for i in range(4):
            for j in range(5):
                gaps = [
                    float((rest[i, j] - c).norm())
                    if metric == "euclidean"
                    else -float(torch.cosine_similarity(rest[i, j], c, dim=0))
                    for c in codes
                ]
                best = sorted(range(7), key=gaps.__getitem__)[:2]
                near[i, j] = codes[best].sum(0)
        rest, wanted = rest - near, wanted + near
    torch.testing.assert_close(layer(x), wanted)
    assert layer.encode(x).shape == (4, 5, 4)
    layer.strength = 0.3
    torch.testing.assert_close(layer(x), 0.7 * x + 0.3 * wanted)


@pytest.mark.truth("closed form: squared error of a uniform and a normal source")
def test_errors_of_scalar_values():
    x = (torch.arange(400_000, dtype=torch.float64) + 0.5).reshape(-1, 1) / 400_000 - 0.5
    for n, wanted in ((2, 0.083333), (4, 0.009259), (10, 0.00102881)):
        layer = VectorQuantizer(1, n, "scalar").double()
        assert layer.usage(x)["mse"] == pytest.approx(wanted, rel=1e-4)
        assert wanted == pytest.approx(1 / (12 * (n - 1) ** 2), rel=1e-4)
    best = math.sqrt(2 / math.pi)
    pair = VectorQuantizer.of(torch.tensor([[-best], [best]]).double())
    normal = torch.erfinv(2 * (x + 0.5) - 1) * 2**0.5
    assert pair.usage(normal)["mse"] == pytest.approx(1 - 2 / math.pi, abs=2e-4)


@pytest.mark.truth("a moving average over the rows of each code, in a loop")
def test_codes_follow_their_rows():
    layer = VectorQuantizer(3, 4, decay=0.9, revive=False).double().train()
    counts, codes = torch.ones(4).double(), layer.codes[0].clone()
    for step in range(3):
        x = draw(20, 3, seed=step)
        mask = torch.arange(20) < 17
        near = torch.cdist(x, codes).argmin(1)
        for c in range(4):
            mine = x[mask & (near == c)]
            total = 0.9 * counts[c] + 0.1 * len(mine)
            codes[c] = (0.9 * counts[c] * codes[c] + 0.1 * mine.sum(0)) / total
            counts[c] = total
        layer(x, mask)
        torch.testing.assert_close(layer.codes[0], codes)
    before = layer.codes.clone()
    layer.eval()(draw(20, 3))
    assert torch.equal(before, layer.codes)


def test_gradients_and_loss():
    layer, x = VectorQuantizer(3, 5, "scalar").double(), draw(6, 3).requires_grad_()
    weights = draw(6, 3, seed=4)
    (layer(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)
    assert layer.codes.grad is None
    q = layer.decode(layer.encode(x)).detach()
    assert float(layer.loss(x).detach()) == pytest.approx(
        1.25 * float((x - q).detach().square().mean())
    )
    layer.loss(x).backward()
    assert float(layer.codes.grad.abs().sum()) > 0


def test_unused_codes_come_back_as_rows():
    layer = VectorQuantizer(2, 6, decay=0.5).double().train()
    with torch.no_grad():
        layer.codes[0, 3:] = 100.0
    x = draw(30, 2)
    layer(x)
    again = layer.codes[0, 3:]
    assert all(any(torch.equal(code, row) for row in x) for code in again)


@pytest.mark.truth("closed form: codes that are the rows lose nothing")
def test_usage_and_messages():
    rows = draw(8, 3)
    layer = VectorQuantizer.of(rows)
    used = layer.usage(rows)
    assert used["mse"] == 0.0
    assert used["dead"] == 0.0
    assert used["perplexity"] == pytest.approx(8.0)
    assert used["bits"] == 3.0
    assert layer.usage(rows[:2])["dead"] == 0.75
    with pytest.raises(ShapeError, match="1 numbers below 8"):
        layer.decode(torch.tensor([[8]]))
    with pytest.raises(InputError, match="nearest codes"):
        VectorQuantizer(3, 4, k=5)


@pytest.mark.parametrize("parameters", [{"stages": 2, "k": 3}, {"kind": "scalar"}])
def test_no_rows_stay_no_rows(parameters):
    layer = VectorQuantizer(4, 5, **parameters).train()
    assert layer(torch.empty(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.truth("the nearest codes of the same numbers in float64")
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_types_choose_the_codes_of_float64_and_give_them_back(kind):
    for parameters in ({"stages": 2}, {"metric": "cosine", "k": 2}, {"kind": "scalar"}):
        layer = VectorQuantizer(4, 9, update="fixed", **parameters).to(kind)
        x = (200 * torch.randn(50, 4, generator=torch.Generator().manual_seed(2))).to(kind)
        wide = VectorQuantizer(4, 9, update="fixed", **parameters).double()
        wide.load_state_dict(layer.state_dict())
        assert torch.equal(layer.encode(x), wide.encode(x.double()))
        assert torch.equal(layer(x), layer.decode(layer.encode(x)))


@pytest.mark.truth("codes that followed the same rows without checkpointing")
@pytest.mark.parametrize("reentrant", [False, True])
def test_codes_move_once_if_the_pass_is_recomputed(reentrant):
    found = []
    for recomputed in (False, True):
        layer = VectorQuantizer(4, 5, stages=2, decay=0.7).double().train()
        weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(4)).double()
        weight.requires_grad_()
        for seed in range(3):
            x = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed)).double()
            x.requires_grad_()

            def loss(y, layer=layer, weight=weight):
                return (layer(y) @ weight).sin().sum()

            made = checkpoint(loss, x, use_reentrant=reentrant) if recomputed else loss(x)
            made.backward()
        found.append([weight.grad, layer.codes, layer.counts, layer.steps])
        copied = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
        assert copied.earlier.most == layer.earlier.most > 0
        assert layer.earlier._kept.values()
        assert not copied.earlier._kept.values()
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)
