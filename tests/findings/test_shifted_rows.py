"""Rows that follow one another in time: targets that are late, and a task that is only made easier.

A forecast that is given newer inputs is better although nothing is wrong.
"""

import pytest
import torch
from torch import Tensor, nn

import sonde
from scan._zoo import quiet

WINDOW, AHEAD = 6, 3


def _series(n: int) -> Tensor:
    """Return a slow random oscillation."""
    draw = torch.randn(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.zeros(n, dtype=torch.float64)
    for t in range(2, n):
        x[t] = 1.6 * x[t - 1] - 0.75 * x[t - 2] + draw[t]
    return (x / x.std()).float()


@pytest.fixture(scope="module")
def forecast() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x = _series(2_200)
    windows = x.unfold(0, WINDOW, 1)[:-AHEAD]
    target = x[WINDOW - 1 + AHEAD :]
    net = nn.Sequential(nn.Linear(WINDOW, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(300):
        at = torch.randint(0, 1_500, (128,))
        optimizer.zero_grad()
        (net(windows[at])[:, 0] - target[at]).square().mean().backward()
        optimizer.step()
    return net.eval(), windows[1_600:], target[1_600:]


def _found(net: nn.Module, x: Tensor, y: Tensor):
    rows = [{"x": x[i], "label": float(y[i])} for i in range(len(y))]
    report = sonde.scan(net, rows, settings=quiet(only=("SND015",)))
    return next((f for f in report.findings if f.code == "SND015"), None)


@pytest.mark.slow
@pytest.mark.truth("a planted shift of the targets; newer inputs of the same forecast")
def test_late_targets_are_named_and_newer_inputs_are_no_fault(forecast) -> None:
    net, x, y = forecast
    assert _found(net, x, y) is None
    late = _found(net, x[:-2], y[2:])
    assert late is not None
    assert late["fix"].startswith("x, y = x[2:], y[:-2]")


class MeanOverTokens(nn.Module):
    """A regression of sequences of any length, which is off by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.answer = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.read(x).mean(1))


@pytest.mark.slow
def test_neighbours_of_another_length_leave_the_other_forms_to_be_tried() -> None:
    net, draw = MeanOverTokens().eval(), torch.Generator().manual_seed(1)
    sequences = [torch.randn(4 + (i % 5 == 0), 3, generator=draw) for i in range(120)]
    with torch.no_grad():
        rows = [{"x": x, "label": float(net(x[None])) + 1} for x in sequences]
    report = sonde.scan(net, rows, batch_size=1, settings=quiet(only=("SND015",)))
    assert report.json()["verdict"]["failed"] == 0
