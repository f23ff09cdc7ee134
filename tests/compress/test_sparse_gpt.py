"""SparseGPT: against elimination and least squares, shares, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde import Model
from sonde.compress import PruneWeights, SparseGPT, layer_grams
from sonde.compress.sparse_gpt import sparse
from sonde.core.errors import InputError
from sonde.data import open_inputs


def drawn(n_in: int = 12, n_out: int = 7) -> tuple[Any, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(n_in, n_out))
    net[0].weight.data = torch.randn(n_out, n_in, generator=draw)
    mix = torch.randn(n_in, n_in, generator=draw)
    return net, torch.randn(60, n_in, generator=draw) @ mix


@pytest.mark.truth("columns removed from the inverse one by one, the mask given")
def test_kept_weights_are_those_of_explicit_elimination():
    net, x = drawn()
    w, rows = net[0].weight.detach().double(), x.double()
    h = rows.T @ rows / 60
    gone = torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    found, _ = sparse(w, h, 0.05, gone=gone)
    damped = h + 0.05 * h.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    for i in range(len(w)):
        left, inverse = w[i].clone(), torch.linalg.inv(damped)
        for j in range(12):
            if gone[i, j]:
                left = left - left[j] / inverse[j, j] * inverse[j]
            inverse = inverse - torch.outer(inverse[j], inverse[j]) / inverse[j, j]
        assert torch.allclose(found[i], left.masked_fill(gone[i], 0.0), atol=1e-9)


@pytest.mark.truth("least squares of the outputs on the kept inputs")
def test_a_refit_is_the_least_squares_fit_and_lies_below_all_others():
    net, x = drawn()
    grams = layer_grams(net, open_inputs(Model(net), x), exact=True, progress=False)
    w, losses = net[0].weight.detach().double(), []
    exact = (
        SparseGPT(0.4, refit=True, shrinkage=0.0, half=False),
        PruneWeights(0.4, refit=True, shrinkage=0.0),
    )
    for rule in (*exact, SparseGPT(0.4), PruneWeights(0.4)):
        new = rule.plan(net, {"calibration": grams}).fold(net)[0].weight.detach().double()
        assert int((new == 0).sum()) in (34, 7 * 5)
        losses.append(float((x.double() @ (w - new).T).square().sum()))
        if rule.refit:
            for i in range(len(w)):
                kept = new[i] != 0
                best = torch.linalg.lstsq(x[:, kept].double(), x.double() @ w[i, :, None])
                assert torch.allclose(new[i, kept], best.solution[:, 0], atol=1e-5)
    assert losses == sorted(losses)
    assert losses[1] < losses[2] < 0.9 * losses[3]


@pytest.mark.truth("outputs on rows that no fit has seen")
def test_a_refit_on_fewer_rows_than_inputs_does_no_harm_on_other_rows():
    net, x = drawn(40, 30)
    w, few, fresh = net[0].weight.detach(), x[:20], x[20:]

    def error(rule: PruneWeights | SparseGPT) -> float:
        new = rule.plan(net, {"calibration": few}).fold(net)[0].weight.detach()
        return float((fresh @ (w - new).T).square().sum())

    plain = error(PruneWeights(0.6, score="wanda"))
    assert error(PruneWeights(0.6, score="wanda", refit=True)) < plain
    assert error(PruneWeights(0.6, score="wanda", refit=True, shrinkage=0.0)) > 2 * plain
    assert error(SparseGPT(0.6, refit=True)) < error(SparseGPT(0.6))


def test_patterns_wide_layers_and_dead_inputs():
    net, x = drawn(150, 5)
    x = x.repeat(4, 1) + torch.randn(240, 150, generator=torch.Generator().manual_seed(2))
    x[:, 3] = 0.0
    new = SparseGPT(pattern="1:3").plan(net, {"calibration": x}).fold(net)[0].weight
    assert bool(((new.reshape(5, 50, 3) != 0).sum(2) <= 1).all())
    half = SparseGPT(0.5).plan(net, {"calibration": x}).fold(net)[0].weight
    assert int((half[:, :128] == 0).sum()) == 320
    assert int((half[:, 128:] == 0).sum()) == 55
    few = SparseGPT(0.004).plan(net, {"calibration": x}).fold(net)[0].weight
    assert not bool(few[:, 3].any())
    assert SparseGPT(0.0).plan(net, {"calibration": x}).fold(net) is net


def test_what_cannot_be_pruned_is_refused():
    net, x = drawn(6)
    with pytest.raises(InputError, match="multiple of 4 weights for 2:4, got 6"):
        SparseGPT(pattern="2:4").plan(net, {"calibration": x})
    with pytest.raises(InputError, match="keeps 1 to 2 of every 2 weights, got '3:2'"):
        SparseGPT(pattern="3:2")
    with pytest.raises(InputError, match="keeps 1 to 4 of every 4 weights, got '0:4'"):
        SparseGPT(pattern="0:4")
    with pytest.raises(InputError, match="damp above 0, got 0"):
        SparseGPT(damp=0.0)
