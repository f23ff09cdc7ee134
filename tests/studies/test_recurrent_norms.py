"""The recurrent nets of ``conditioning``: equal sizes, and sums taken before the norm."""

import pytest
import torch

from sonde_studies._recurrent_norms import Norm, RecurrentNet
from sonde_studies.worlds.learning import drawn

NORMS: tuple[Norm, ...] = ("none", "length", "layer")


def test_all_nets_have_equal_parameters() -> None:
    sizes = {sum(p.numel() for p in RecurrentNet(norm).parameters()) for norm in NORMS}
    assert len(sizes) == 1


@pytest.mark.parametrize("norm", NORMS)
def test_sums_follow_the_recurrence_step_by_step(norm: Norm) -> None:
    net = drawn(lambda: RecurrentNet(norm), 3)
    x = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    found = net.sums(x)
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
