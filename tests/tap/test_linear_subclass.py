"""A linear layer of one's own that returns several tensors, as Llama 4's router does."""

import torch
from torch import nn

import sonde


class Router(nn.Linear):
    def forward(self, x):
        scores = super().forward(x)
        return scores.sigmoid(), scores


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.router, self.head = nn.Linear(6, 5), Router(5, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.router(self.up(x))[0])


def test_the_first_of_its_tensors_is_read():
    torch.manual_seed(0)
    net, x = Gated(), torch.randn(7, 6)
    (batch,) = sonde.read(net, list(x), sites="router")
    found = torch.empty(7, 3)
    found[batch.order] = batch.rows["router:out"]
    torch.testing.assert_close(found, net.router(net.up(x))[0].detach())
