"""Layers that remember earlier steps, compared with sums that are written as loops over steps."""

import pytest
import torch

from sonde.layers import StateQueue
from sonde_studies._memory_nets import DIM, DenseLayers, MemoryNet
from sonde_studies.worlds.learning import drawn


@pytest.mark.truth("sums over earlier steps, written as loops")
def test_dense_layers_read_the_outputs_of_all_earlier_layers() -> None:
    net = drawn(lambda: DenseLayers([StateQueue(DIM, 1, stride=i) for i in (1, 2)]), 0)
    draw = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=draw) / 4
    x = torch.randn(2, 6, DIM, generator=draw)
    told = [x]
    for i, put in enumerate(net.maps):
        h = torch.cat(told, 2) @ put.get_parameter("weight").T + put.get_parameter("bias")
        taps, stride = net.layers[i].get_parameter("taps"), i + 1
        earlier = [h[:, t - stride] if t >= stride else torch.zeros(2, DIM) for t in range(6)]
        told.append(h + taps[0] * torch.stack(earlier, 1))
    torch.testing.assert_close(net(x), told[-1], atol=1e-5, rtol=1e-5)


def test_undilated_layers_see_less_far() -> None:
    """Two taps of strides 1, 2 and 4 reach 14 steps back, three times stride 1 six steps."""
    for arm, reach in (("layers", 14), ("undilated layers", 6)):
        net = drawn(lambda arm=arm: MemoryNet(arm), 0)
        for p in net.queue.parameters():
            p.data = torch.ones_like(p)
        x = torch.zeros(1, 24, 1, requires_grad=True)
        net(x)[0, 23].sum().backward()
        assert x.grad is not None
        assert x.grad[0, 23 - reach].abs() > 0
        assert not x.grad[0, : 23 - reach].any()
