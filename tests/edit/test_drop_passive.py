"""Passive latents taken out of a code."""

import pytest
import torch

from sonde.core import EditContext, InputError, ShapeError, Site
from sonde.edit import DropPassive
from sonde.measure import active_variables
from sonde.tap import editing
from sonde.testing import check


@pytest.mark.slow
def test_it_keeps_the_laws():
    for strength in (1.0, 0.4):
        check(DropPassive((2, 0, 1, 0), strength=strength))
        check(DropPassive((2, 0, 1, 0), mixed=True, strength=strength))


@pytest.mark.truth("a linear decoder without the columns of the latents at the prior")
@pytest.mark.parametrize("mixed", [False, True])
def test_a_decoder_reads_no_latent_at_the_prior(mixed):
    draw = torch.Generator().manual_seed(0)
    mu = torch.randn(400, 5, generator=draw) * torch.tensor([1.5, 0.01, 2.0, 0.02, 1.0])
    mu[::2, 4] = 0.0  # off the prior in half of the rows: mixed
    log_variance = torch.tensor([-2.0, 0.01, -3.0, -0.02, 0.0]).expand(400, -1).contiguous()
    kind = tuple(active_variables(mu, log_variance).kind.tolist())
    assert kind == (2, 0, 2, 0, 1)
    decoder = torch.nn.Linear(5, 3)
    net = torch.nn.Sequential(torch.nn.Identity(), decoder)
    kept = [0, 2] if mixed else [0, 2, 4]
    with torch.no_grad(), editing(net, DropPassive(kind, mixed), "0"):
        found = net(mu)
    want = mu[:, kept] @ decoder.weight[:, kept].T + decoder.bias
    torch.testing.assert_close(found, want.detach())


def test_kinds_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="the kind 0, 1 or 2 of each latent"):
        DropPassive((0, 3))
    with pytest.raises(ShapeError, match=r"as wide as the direction, 2, got 3 at code"):
        DropPassive((0, 2)).apply(torch.zeros(1, 3), Site("code"), EditContext())
