"""Trials of single modules: each undoes one mistake of loading or of a setting."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import sonde
from sonde.findings.settings import ScanSettings

ONLY = ScanSettings(progress=False, only=("SND068",))


class Readout(nn.Module):
    """One state of all steps."""

    def __init__(self, kind: Literal["mean", "max", "last"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mean":
            return x.mean(1)
        return x.amax(1) if self.kind == "max" else x[:, -1]


class Standard(nn.Module):
    """Inputs at mean 0 and variance 1."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", x.mean((0, 1)))
        self.register_buffer("std", x.std((0, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Layers(nn.Module):
    """Two linear layers with a residual path that can be left out."""

    def __init__(self, skip: bool = True) -> None:
        super().__init__()
        self.one, self.two, self.skip = nn.Linear(24, 24), nn.Linear(24, 24), skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x).tanh())
        return 3 * x + y if self.skip else y


class Series(nn.Module):
    """A recurrent net over a series of three channels."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.first, self.rnn = Standard(x), nn.LSTM(3, 24, batch_first=True)
        self.pool, self.layers, self.last = Readout("mean"), Layers(), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.pool(self.rnn(self.first(x))[0])))


@cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained net with fresh rows and targets."""
    torch.manual_seed(0)
    x = torch.tensor([3.0, -1, 20]) + torch.tensor([2.0, 0.5, 9]) * torch.randn(1100, 8, 3)
    z = (x - x.mean((0, 1))) / x.std((0, 1))
    y = (z[..., 0] * z[..., 1]).mean(1) * 3 + z[:, :, 2].mean(1) * 2 + z[:, 4:, 1].mean(1)
    net = Series(x)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(250):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x[:700])[:, 0], y[:700]).backward()
        optimiser.step()
    return net.requires_grad_(False).eval(), x[700:], y[700:]


def gates(net: Any) -> None:
    for p in net.rnn.parameters():
        p.copy_(torch.cat([p.chunk(4)[i] for i in (0, 2, 1, 3)]).clone())


def exchanged(net: Any) -> None:
    one, two = net.layers.one.state_dict(), deepcopy(net.layers.two.state_dict())
    net.layers.two.load_state_dict(one)
    net.layers.one.load_state_dict(two)


def transposed(net: Any) -> None:
    net.layers.one.weight.copy_(net.layers.one.weight.T.clone())


def rescaled(net: Any) -> None:
    net.layers.one.weight.mul_(-1)


def no_residual(net: Any) -> None:
    net.layers.skip = False


def other_pooling(net: Any) -> None:
    net.pool.kind = "max"


def stale(net: Any) -> None:
    net.first.mean.add_(2 * net.first.std)
    net.first.std.mul_(0.3)


FAULTS: dict[Callable[[Any], None], tuple[str, ...]] = {
    gates: ("rnn",), exchanged: ("layers.one", "layers.two"), transposed: ("layers.one",),
    rescaled: ("layers.one",), no_residual: ("layers",), other_pooling: ("pool",),
    stale: ("first",),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.truth("the module that was changed, and the answers before that")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_the_changed_module_is_named_with_a_line_that_mends_it(fault: Callable) -> None:
    healthy, x, y = trained()
    net = deepcopy(healthy)
    fault(net)
    report = sonde.scan(net, {"x": x.numpy(), "label": y.numpy()}, settings=ONLY)
    (finding,) = report.findings
    named = finding["location"]["modules"]
    assert set(named) & set(FAULTS[fault])
    line = finding["fix"].rpartition(": ")[0]
    if line.startswith(("model.", "a, b", "for p")):  # code on weights
        exec(line, {"model": net, "torch": torch})
        errors = [float((n(x)[:, 0] - y).square().mean()) for n in (healthy, net)]
        assert errors[1] < errors[0] + 0.2 * float(y.var())


@pytest.mark.slow
def test_a_trained_net_has_no_change_and_stays_as_it_is() -> None:
    net, x, y = trained()
    before = deepcopy(net.state_dict())
    report = sonde.scan(net, {"x": x.numpy(), "label": y.numpy()}, settings=ONLY)
    assert report.findings == []
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
