"""The recurrent nets of ``conditioning``: equal sizes, and sums taken before the norm."""

import pytest
import torch

from sonde_studies._recurrent_norms import RecurrentNet
from sonde_studies.worlds.learning import drawn


def test_both_nets_have_equal_parameters() -> None:
    sizes = [sum(p.numel() for p in RecurrentNet(n).parameters()) for n in (False, True)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("normed", [False, True])
def test_sums_follow_the_recurrence_step_by_step(normed: bool) -> None:
    net = drawn(lambda: RecurrentNet(normed), 3)
    x = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    found = net.sums(x)
    h = torch.zeros(5, 32)
    for step in range(3):
        u = x[:, 4 * step : 4 * step + 4] @ net.first.weight.T + net.first.bias
        a = u + h @ net.back.weight.T
        assert torch.allclose(found[step], a, atol=1e-5)
        if normed:
            a = (a - a.mean(1, keepdim=True)) / (a.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        h = a.clamp(min=0)
