"""Mixtures of widths: how they are drawn, what is rounded, and what training gains."""

from itertools import product

import pytest
import torch
from scipy.stats import chisquare

from sonde.compress import RTN, OnceForAllBits, fidelity
from sonde.compress._layers import weighted_layers
from sonde.compress.once_for_all_bits import SWEEP, _Adapted, _Mixtures, draw_widths
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.testing.rewrite_laws import labelled_images, small_net


@pytest.mark.essential
@pytest.mark.truth("all mixtures, counted")
def test_sums_are_equally_likely_and_so_are_mixtures_of_a_sum():
    draw, widths = torch.Generator().manual_seed(0), (2, 3, 8)
    drawn = [tuple(draw_widths(4, widths, draw)) for _ in range(6_000)]
    every = list(product(widths, repeat=4))
    sums = sorted({sum(m) for m in every})
    found = [sum(sum(m) == s for m in drawn) for s in sums]
    assert chisquare(found).pvalue > 1e-3
    for total in (10, 16, 21):
        mixtures = [m for m in every if sum(m) == total]
        assert len(mixtures) > 3, total
        assert chisquare([drawn.count(m) for m in mixtures]).pvalue > 1e-3


@pytest.mark.truth("the normal density at each sum, and its centre moved by hand")
def test_a_schedule_moves_over_the_sums_and_gives_each_its_turn():
    n, widths, turns = 3, (2, 3, 4), 300
    mixtures, draw = _Mixtures(n, widths, "schedule"), torch.Generator().manual_seed(0)
    sums = torch.tensor(
        [[sum(mixtures.draw(draw)) for _ in range(SWEEP)] for _ in range(turns)]
    ).double()
    at = torch.arange(6, 13).double()
    for step in (0, 5, SWEEP // 2, SWEEP - 3):
        centre = 6 + 6 * min(step, SWEEP - step) / (SWEEP / 2)
        wanted = torch.exp(-((at - centre) ** 2) / (2 * 0.9**2))
        wanted = turns * wanted / wanted.sum()
        counts = torch.stack([(sums[:, step] == total).sum() for total in at]).double()
        kept = wanted > 2
        assert chisquare(
            [*counts[kept], counts[~kept].sum() + 1e-9], [*wanted[kept], wanted[~kept].sum() + 1e-9]
        ).pvalue > 1e-3, step  # fmt: skip
    alone = _Mixtures(n, widths, "layers")
    apart = torch.tensor([sum(alone.draw(draw)) for _ in range(sums.numel())])
    assert 0.8 < (apart == 6).double().mean() * 27 < 1.2
    assert (sums == 6).double().mean() > 2.2 / 27


@pytest.mark.truth("RTN at the width of each layer, bit for bit")
def test_without_corrections_each_layer_is_rounded_alone():
    net = small_net()
    plan = OnceForAllBits({"10": 2, "11": 5}, group=7).plan(net)
    for name, bits in (("10", 2), ("11", 5)):
        alone = RTN(bits, 7, layers=(name,)).plan(net).changes[f"{name}.weight"]
        found = plan.changes[f"{name}.weight"]
        assert found.codes.equal(alone.codes)
        assert found.scale.equal(alone.scale)
        assert found.offset.equal(alone.offset)


@pytest.mark.truth("the folded model, and the gradient of a plain product")
def test_what_is_trained_is_what_is_folded():
    net = small_net()
    layer = weighted_layers("test", Model(net), ("10",))[0]
    adapted = _Adapted(layer, (2, 4), 8, 3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapted.lefts["2"].normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    adapted.bits = 2
    weight = net[10].weight.detach()
    seen = adapted(weight)
    corrections = {"10": adapted.factors()}
    new = OnceForAllBits({"10": 2, "11": 3}, 8, corrections).plan(net).changes["10.weight"]
    torch.testing.assert_close(seen.detach().double(), new.of(weight).double())
    slope = torch.randn(seen.shape, generator=torch.Generator().manual_seed(2))
    (seen * slope).sum().backward()
    torch.testing.assert_close(adapted.lefts["2"].grad, slope @ adapted.rights["2"].detach().T)
    assert adapted.lefts["4"].grad is None


def test_training_once_serves_every_mixture():
    net, (x, _) = small_net(), labelled_images(0, 48)
    with torch.no_grad():
        net[11].weight.mul_(20.0)  # answers that differ
    data = open_inputs(Model(net), x)
    found = OnceForAllBits.train(
        net, data, (2, 4), group=16, rank=4, rate=2e-3, epochs=40, progress=False
    )
    total = {"trained": 0.0, "plain": 0.0}
    for mixture in product((2, 4), repeat=2):
        widths = dict(zip(("10", "11"), mixture, strict=True))
        for name, corrections in (("trained", found.corrections), ("plain", {})):
            new = OnceForAllBits(widths, 16, corrections).plan(net).fold(net)
            total[name] += fidelity(net, new, data).kl
    assert total["trained"] < 0.75 * total["plain"]
    cheap = found.within(net, data, 2.2)
    n = {"10": net[10].weight.numel(), "11": net[11].weight.numel()}
    assert sum(n[k] * b for k, b in cheap.bits.items()) <= 2.2 * sum(n.values())
    assert cheap.bits == {"10": 2, "11": 4}


def test_a_shared_correction_is_one_for_all_widths():
    net, (x, _) = small_net(), labelled_images(0, 16)
    data = open_inputs(Model(net), x)
    one, each = (
        OnceForAllBits.train(
            net, data, (2, 4), group=16, rank=4, epochs=3, is_shared=shared, progress=False
        ).corrections["10"]
        for shared in (True, False)
    )
    assert all(a.equal(b) for a, b in zip(one[2], one[4], strict=True))
    assert one[2][0].abs().sum() > 0
    assert not any(a.equal(b) for a, b in zip(each[2], each[4], strict=True))


def test_what_is_missing_is_refused():
    net = small_net()
    with pytest.raises(InputError, match=r"a width for each layer, got \['10'\] for"):
        OnceForAllBits({"10": 2}).plan(net)
    with pytest.raises(InputError, match=r"expected corrections\. Call train first"):
        OnceForAllBits().within(net, labelled_images(0), 3)
    with pytest.raises(InputError, match="whole bits from 2 to 8, or None, got 9"):
        OnceForAllBits(9)
