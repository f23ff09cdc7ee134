"""Sizes of forked nets, gradients by hand, and the layer at which curves part."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from sonde_studies import where_tasks_part
from sonde_studies._forked_nets import (
    DEPTH,
    INPUTS,
    WIDTH,
    agreements,
    equal_width,
    forked,
    parting,
    size_of,
)


def counted(cut, width, outputs):
    """Return the number of parameters by the formula of a layer: weights, bias, norm."""
    layer = [(width if i else INPUTS) * width + 3 * width for i in range(DEPTH)]
    return sum(layer[:cut]) + sum(sum(layer[cut:]) + width * n + n for n in outputs)


@pytest.mark.truth("the number of weights of each layer, added up")
def test_all_cuts_have_as_many_parameters():
    whole = counted(DEPTH, WIDTH, (10, 64))
    for cut in range(DEPTH + 1):
        width = equal_width(cut, (10, 64))
        assert size_of(cut, width, (10, 64)) == counted(cut, width, (10, 64))
        off = [abs(counted(cut, width + d, (10, 64)) - whole) for d in (-1, 0, 1)]
        assert off[1] == min(off)
        assert off[1] < 0.05 * whole
    assert equal_width(DEPTH, (10, 64)) == WIDTH


def test_tasks_share_the_layers_below_the_cut_alone():
    torch.manual_seed(0)
    net = forked(2, 8, (10, 64))
    net(torch.randn(5, INPUTS))[0].sum().backward()
    assert all(p.grad is not None for p in net.shared.parameters())
    assert all(p.grad is not None for p in net.branches[0].parameters())
    assert all(p.grad is None for p in net.branches[1].parameters())


@pytest.mark.truth("mean gradients by autograd, batch by batch, and torch's cosine")
def test_agreement_is_the_cosine_of_mean_gradients():
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(192, INPUTS, generator=draw)
    digit, clean = torch.randint(10, (192,), generator=draw), x + 1
    torch.manual_seed(1)
    net = forked(DEPTH, 12, (10, 64)).eval()
    found = agreements(net, x, (digit, clean), torch.tensor(0.7))
    mean = []
    for task in (0, 1):
        own = [
            torch.zeros(sum(p.numel() for p in m.parameters()))
            for m in net.shared.layers.children()
        ]
        for rows in torch.arange(192).split(3)[task::2]:
            said = net(x[rows])[task]
            loss = (
                cross_entropy(said, digit[rows])
                if task == 0
                else (said - clean[rows]).square().mean() / 0.7
            )
            for total, layer in zip(own, net.shared.layers, strict=True):
                slopes = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
                total += torch.cat([s.flatten() for s in slopes])
        mean.append(own)
    want = [float(cosine_similarity(a, b, dim=0)) for a, b in zip(*mean, strict=True)]
    assert found == pytest.approx(want, abs=1e-4)


@pytest.mark.truth("curves made so that half of the largest gap is reached at one layer")
def test_curves_part_where_half_of_the_gap_is_reached():
    flat = [0.5, 0.5, 0.5, 0.5]
    first = ([0.3, 0.3, 0.6, 0.9], flat)
    second = ([0.3, 0.2, 0.2, 0.1], [0.5, 0.5, 0.4, 0.7])
    # gaps, twice: 0, .1, .3, 1.0
    assert parting(first, second) == 3
    assert parting(first, ([0.3, 0.2, 0.1, 0.1], [0.5, 0.5, 0.5, 0.7])) == 2  # .5 of 1.0
    assert parting(second, first) == 4  # neither is more similar to its own target


@pytest.mark.slow
@pytest.mark.truth("rows that judge, changed: what the cut is chosen on stays the same")
def test_the_cut_is_chosen_on_rows_that_train():
    draw = torch.Generator().manual_seed(0)
    n = where_tasks_part.FIT + 60
    x, digit = torch.rand(n, INPUTS, generator=draw), torch.randint(10, (n,), generator=draw)
    other, names = x.clone(), digit.clone()
    other[where_tasks_part.FIT :], names[where_tasks_part.FIT :] = 0.5 * other[-60:].flip(0), 3
    found = [
        where_tasks_part.forks(rows, kind, 3, 0, lambda _: None)
        for rows, kind in ((x, digit), (other, names))
    ]
    assert found[0]["cut 0 | R2"] != found[1]["cut 0 | R2"]
    for key in (
        "rises",
        "cut where curves part",
        "cut of least agreement",
        "layer 4 | naming, class",
    ):
        assert found[0][key] == found[1][key]
