"""Rounding to the nearest: bounds, exact cases, edges, and what is refused."""

import pytest
import torch
from torch import nn

from sonde.compress import RTN, QuantLinear
from sonde.core.errors import InputError


def weights(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(37, 12), nn.ReLU(), nn.Linear(12, 5, bias=False))
    net[0].weight.data[3] = 0.0
    net[0].weight.data[4, :8] = 2.5
    return net


@pytest.mark.truth("the grid searched entry by entry")
@pytest.mark.parametrize("symmetry", ["asymmetric", "symmetric"])
def test_each_weight_is_the_nearest_of_its_group(symmetry):
    net = weights()
    new = RTN(bits=3, group=16, symmetry=symmetry).plan(net).fold(net)
    for i in (0, 2):
        layer, w = new[i], net[i].weight.detach().double()
        assert isinstance(layer, QuantLinear)
        scale, offset = (x.view(torch.bfloat16).double() for x in (layer.scale, layer.offset))
        found, codes = layer.values(torch.float64), torch.arange(8.0).double() - 4
        for row in range(len(w)):
            for j in range(w.shape[1]):
                points = codes * scale[row, j // 16] + offset[row, j // 16]
                nearest = points[(points - w[row, j]).abs().argmin()]
                assert abs(found[row, j] - w[row, j]) <= abs(nearest - w[row, j]) + 1e-12
    assert bool((new[0].values()[3] == 0).all())


def test_rounding_again_changes_nothing_and_no_bits_is_the_same_model():
    net = weights()
    new = RTN(bits=8, group=37).plan(net).fold(net)
    assert (new[0].values() - net[0].weight).abs().max() < net[0].weight.abs().max() / 100
    assert RTN(bits=None).plan(net).fold(net) is net


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(InputError, match="expected bits from 2 to 8, or None, got 9"):
        RTN(bits=9)
    with pytest.raises(InputError, match="a group of at least 1 entry, got 0"):
        RTN(group=0)
    with pytest.raises(InputError, match="expected linear layers, got none"):
        RTN().plan(nn.Sequential(nn.Conv1d(2, 3, 2)))
    net = weights()
    with pytest.raises(InputError, match="packed already"):
        RTN().plan(RTN().plan(net).fold(net))
    net[0].weight.data[1, 1] = float("inf")
    with pytest.raises(InputError, match=r"NaN or infinity in 0\.weight"):
        RTN().plan(net)
    tied = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    tied["head"].weight = tied["embed"].weight
    with pytest.raises(InputError, match="head and embed are one weight"):
        RTN(layers=("head",)).plan(tied)
