"""Regressions on three functions: silent when healthy, and the cause named when broken."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import make_friedman1, make_friedman2, make_friedman3
from torch import Tensor, nn

import sonde
from scan._zoo import quiet
from sonde.report import Report
from sonde.report._first_screen import first_finding

pytestmark = pytest.mark.slow

TASKS = {"sines": make_friedman1, "impedance": make_friedman2, "phase": make_friedman3}
N, FIT = 600, 360


class Net(nn.Module):
    """A perceptron that standardises its inputs and gives its target's own scale, ``(row,)``."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        layers = [nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Linear(16, 1))
        self.mean, self.scale = nn.Buffer(x.mean(0)), nn.Buffer(x.std(0))
        self.level, self.spread = nn.Buffer(y.mean()), nn.Buffer(y.std())

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.scale)[:, 0] * self.spread + self.level


@cache
def trained(task: str) -> tuple[nn.Module, Tensor, Tensor]:
    x, y = (torch.tensor(v).float() for v in TASKS[task](N, noise=0.1, random_state=3))
    torch.manual_seed(0)
    net = Net(x[:FIT], y[:FIT])
    optimiser = torch.optim.Adam(net.parameters(), 0.01, weight_decay=1e-3)
    for _ in range(200):
        optimiser.zero_grad()
        ((net(x[:FIT]) - y[:FIT]) / net.spread).square().mean().backward()
        optimiser.step()
    return net.requires_grad_(False).eval(), x[FIT:], y[FIT:]


def scanned(net: nn.Module, x: Tensor, y: Tensor) -> Report:
    rows = {f"c{i}": x[:, i].tolist() for i in range(x.shape[1])} | {"label": y.tolist()}
    return sonde.scan(net, rows, settings=quiet())


def decisive(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the column whose change of unit costs most."""
    lost = []
    for i in range(x.shape[1]):
        other = x.clone()
        other[:, i] *= 2.54
        lost.append(float((net(other) - y).square().mean()))
    return int(np.argmax(lost))


@pytest.mark.parametrize("task", TASKS)
def test_a_healthy_regression_is_left_alone(task: str) -> None:
    net, x, y = trained(task)
    report = scanned(net, x, y)
    assert [f["code"] for f in report.findings if f["level"] != "note"] == []
    found = report.json()["answers"]
    assert found["value"] < 0.5 * found["commonest"]


@pytest.mark.truth("planted: one column in another unit, two exchanged, targets on other scales")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("plant", ["unit", "exchange", "tenth", "thousand"])
def test_what_breaks_a_regression_is_named_first(task: str, plant: str) -> None:
    net, x, y = trained(task)
    i = decisive(net, x, y)
    j = (i + 1) % x.shape[1]
    order = list(range(x.shape[1]))
    order[i], order[j] = j, i
    unit = torch.ones(x.shape[1])
    unit[i] = 3.28084
    plants: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], str]] = {
        "unit": (lambda: (x * unit, y), f"c{i} divided by 3.28084"),
        "exchange": (lambda: (x[:, order], y), "exchanged"),
        "tenth": (lambda: (x, y / 10), "y = 0.1 * y"),
        "thousand": (lambda: (x, 1000 * y), "y = 1000 * y"),
    }
    change, said = plants[plant]
    found = first_finding(scanned(net, *change()).json())
    assert found is not None
    assert said in found["fix"]


@pytest.mark.truth("planted: a third of the rows in feet; targets one row late from the middle on")
def test_a_share_of_the_rows_and_the_rest_of_the_file_are_named() -> None:
    net, x, y = trained("sines")
    i = decisive(net, x, y)
    feet, slipped = x.clone(), y.clone()
    feet[::3, i] *= 3.28084
    half = len(y) // 2
    slipped[half:] = y[half:].roll(1)
    share, rest = (first_finding(scanned(net, *rows).json()) for rows in ((feet, y), (x, slipped)))
    assert share is not None
    assert rest is not None
    assert f"c{i} divided by 3.28084" in share["fix"]
    assert "of all rows are given in another form" in share["sentence"]
    assert (rest["code"], "misaligned" in rest["sentence"]) == ("SND049", True)
