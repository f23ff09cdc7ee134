"""The mask that a server joins from its clients, and the net that they train."""

import pytest
import torch
from torch import nn

from sonde_studies._sparse_clients import DENSITY, joined_mask, train_sparse_clients


@pytest.mark.truth("a sort of weights by votes and size, as tuples")
def test_the_joined_mask_has_the_weights_that_most_clients_use():
    draw = torch.Generator().manual_seed(3)
    masks = [torch.rand(24, generator=draw).argsort() < 9 for _ in range(5)]
    mean = torch.randn(24, generator=draw)
    rank = sorted(range(24), key=lambda i: (-sum(int(m[i]) for m in masks), -abs(float(mean[i]))))
    joined = joined_mask([m.reshape(4, 6) for m in masks], mean.reshape(4, 6))
    assert sorted(rank[:9]) == joined.flatten().nonzero().flatten().tolist()


@pytest.mark.slow
def test_the_net_stays_sparse_and_learns():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(120, 12, generator=draw)
    label = (x[:, 0] > 0).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 2))
    before = {name: p.clone() for name, p in net.named_parameters()}
    clients = [(x[label == k], label[label == k]) for k in (0, 1)]
    made = train_sparse_clients(net, clients, "congruity", rounds=10, seed=1)
    for name, p in made.named_parameters():
        if p.ndim == 2:
            assert int(p.count_nonzero()) <= round(DENSITY * p.numel())
        torch.testing.assert_close(net.get_parameter(name), before[name], rtol=0, atol=0)
    assert (made(x).argmax(1) == label).double().mean() > 0.8
