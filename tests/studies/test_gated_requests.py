"""Several requests to forget in place at once."""

import pytest
import torch
from torch import nn

import sonde
from sonde.edit import LowRankAdapter
from sonde_studies._gated_requests import requested


@torch.no_grad()
@pytest.mark.truth("the adapters' maps, multiplied by hand")
def test_requests_are_applied_in_turn_and_taken_off_again():
    draw = torch.Generator().manual_seed(0)
    model = sonde.Model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval())
    x = torch.randn(3, 4, generator=draw)
    down, up = torch.randn(2, 1, 4, generator=draw), torch.randn(2, 4, 1, generator=draw)
    before = model.module(x)
    with requested(model, [(LowRankAdapter(d, u), None) for d, u in zip(down, up, strict=True)],
                   "0"):  # fmt: skip
        found = model.module(x)
    states = model.module[0](x)
    for d, u in zip(down, up, strict=True):
        states = states @ (torch.eye(4) + u @ d).T
    torch.testing.assert_close(found, model.module[1](states))
    assert torch.equal(model.module(x), before)
