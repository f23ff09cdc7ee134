"""The recurrent nets of ``conditioning``: equal sizes, and sums taken before the norm."""

import math

import pytest
import torch

from sonde_studies._recurrent_norms import Norm, RecurrentNet, range_of
from sonde_studies.worlds.learning import drawn

NORMS: tuple[Norm, ...] = ("none", "length", "layer")


def test_all_nets_have_equal_parameters() -> None:
    sizes = {sum(p.numel() for p in RecurrentNet(norm).parameters()) for norm in NORMS}
    assert len(sizes) == 1


@pytest.mark.parametrize("norm", NORMS)
def test_sums_follow_the_recurrence_step_by_step(norm: Norm) -> None:
    net = drawn(lambda: RecurrentNet(norm), 3)
    x = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    kick = 0.3 * torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    found, kicked = net.sums(x), net.sums(x, kick)
    assert torch.equal(kicked[0], found[0])
    h = torch.zeros(5, 32)
    for step in range(3):
        u = x[:, 4 * step : 4 * step + 4] @ net.first.weight.T + net.first.bias
        a = u + h @ net.back.weight.T
        assert torch.allclose(found[step], a, atol=1e-5)
        if norm == "layer":
            a = a - a.mean(1, keepdim=True)
        if norm != "none":
            a = a / (a.square().mean(1, keepdim=True) + 1e-5).sqrt()
        h = a.clamp(min=0)
        if step == 0:
            after = h + kick * h.norm(dim=1, keepdim=True)
            u = x[:, 4:8] @ net.first.weight.T + net.first.bias
            assert torch.allclose(kicked[1], u + after @ net.back.weight.T, atol=1e-5)


def test_sums_that_double_spread_by_the_logarithm_of_two() -> None:
    """The recurrent weight is twice the identity: each step doubles all sums."""
    net = RecurrentNet("none")
    with torch.no_grad():
        net.back.weight.copy_(2 * torch.eye(32))
        net.first.weight.fill_(0.25)
        net.first.bias.zero_()
    found = range_of(net, torch.ones(7, 64) * (torch.arange(64) < 4), seed=0)
    assert found["spread"] == pytest.approx(math.log(2) * torch.arange(15.0).std().item(), rel=1e-5)
    assert found["kept"] == pytest.approx(0, abs=1e-4)
