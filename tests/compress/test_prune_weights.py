"""Removed weights: against all masks, ties, patterns, and what is refused."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

from sonde.compress import PruneWeights
from sonde.core.errors import InputError


def drawn() -> tuple[Any, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 5, bias=False))
    net[0].weight.data = torch.randn(5, 8, generator=draw)
    q, _ = torch.linalg.qr(torch.randn(40, 8, generator=draw))
    return net, q * torch.tensor([9.0, 0.2, 3.0, 1.0, 0.5, 4.0, 0.1, 2.0])


@pytest.mark.truth("every mask of a row, by the error of the outputs")
def test_wanda_finds_the_best_mask_where_inputs_are_orthogonal():
    net, x = drawn()
    new = PruneWeights(remove=0.4, score="wanda").plan(net, {"calibration": x}).fold(net)
    w, found = net[0].weight.detach(), new[0].weight.detach()
    for i in range(5):
        errors = {
            gone: float((x[:, gone] @ w[i, gone]).square().sum())
            for gone in combinations(range(8), 3)
        }
        assert tuple((found[i] == 0).nonzero()[:, 0].tolist()) == min(
            errors, key=errors.__getitem__
        )
        kept = found[i] != 0
        assert torch.equal(found[i][kept], w[i][kept])
    plain = PruneWeights(remove=0.4).plan(net).fold(net)
    assert not torch.equal(plain[0].weight, new[0].weight)


def test_equal_weights_go_by_index_and_patterns_keep_two_of_four():
    net, x = drawn()
    net[0].weight.data[2] = -0.7
    new = PruneWeights(remove=0.3).plan(net).fold(net)[0].weight
    assert (new[2] == 0).tolist() == [True, True] + 6 * [False]
    assert ((new == 0).sum(1) == 2).all()
    runs = PruneWeights(pattern="2:4", score="wanda").plan(net, {"calibration": x}).fold(net)
    assert ((runs[0].weight.reshape(-1, 4) == 0).sum(1) == 2).all()
    net[0].weight.data[:2] *= 0.3  # small weights gather in the first rows
    every = PruneWeights(remove=0.3, within="layer").plan(net).fold(net)[0].weight
    smallest = net[0].weight.abs().flatten().sort(stable=True).indices[:12]
    assert (every.flatten() == 0).nonzero()[:, 0].tolist() == sorted(smallest.tolist())
    assert PruneWeights(remove=0.0).plan(net).fold(net) is net


def test_what_cannot_be_pruned_is_refused():
    net = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(InputError, match=r"multiple of 4 weights for 2:4, got 6 in 0\.weight"):
        PruneWeights(pattern="2:4").plan(net)
    with pytest.raises(InputError, match=r"remove in \[0, 1\), got 1\.0"):
        PruneWeights(remove=1.0)
    with pytest.raises(InputError, match="a pattern such as '2:4', got 'half'"):
        PruneWeights(pattern="half")
    with pytest.raises(InputError, match="only within a row, got 'layer'"):
        PruneWeights(score="wanda", within="layer")
