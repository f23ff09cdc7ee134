"""A flow of two parts, and the steps at which the first one runs."""

import pytest
import torch
from torch import nn

from sonde.compress import SplitFlow
from sonde.core import InputError


class Encoder(nn.Module):
    """Notes its times, and returns twice the mean of each row and the time."""

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x, time):
        self.times.append(float(time[0]))
        return torch.cat([2 * x.mean(1, keepdim=True), 1 - 2 * time], 1)


class Decoder(nn.Module):
    def forward(self, state, x, time):
        return state[:, :1] - x * time + state[:, 1:]


@pytest.mark.truth("Euler's steps by hand")
def test_left_out_steps_use_the_last_state():
    flow, x = SplitFlow(Encoder(), Decoder()), torch.tensor([[1.0, -0.5], [3.0, 2.0]])
    wanted, state = x.double(), None
    for step in range(4):
        time = step / 4
        if step in (0, 2):
            state = 2 * wanted.mean(1, keepdim=True), 1 - 2 * time
        wanted = wanted + (state[0] - wanted * time + state[1]) / 4
    torch.testing.assert_close(flow.sample(x, 4, [0, 2]).double(), wanted)
    assert flow.encoder.times == [0.0, 0.5]
    assert not torch.allclose(flow.sample(x, 4), flow.sample(x, 4, [0, 2]))
    time = torch.full((2, 1), 0.25)
    torch.testing.assert_close(flow(x, time), flow.decoder(flow.encoder(x, time), x, time))


@pytest.mark.truth("cosines of two angles")
def test_similarity_is_the_mean_cosine_of_states():
    class Turning(nn.Module):
        def forward(self, x, time):
            return torch.cat([torch.cos(time), torch.sin(time)], 1) * (1 + x[:, :1].abs())

    table = SplitFlow(Turning(), Decoder()).similarity(torch.randn(3, 2), 2)
    half = float(torch.cos(torch.tensor(0.5)))
    torch.testing.assert_close(table, torch.tensor([[1.0, half], [half, 1.0]]))


@pytest.mark.parametrize("at", [[1], [0, 4], []])
def test_steps_that_the_sampler_lacks_are_refused(at):
    with pytest.raises(InputError, match="begin with 0 and are below n_steps=4"):
        SplitFlow(Encoder(), Decoder()).sample(torch.zeros(1, 2), 4, at)
