from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import sonde
from findings._nets import tensors
from sonde.findings.evidence.trials.stored_columns import stored_columns
from sonde.findings.evidence.trials.tempered_loss import RIDGE, cooled_loss, fitted_constants
from sonde.findings.settings import ScanSettings

NAMES = ("age", "height", "weight", "pulse", "sugar", "iron")
MEAN = torch.tensor([40.0, 1.7, 70.0, 80.0, 5.0, 0.02])
STD = torch.tensor([12.0, 0.1, 15.0, 9.0, 1.5, 0.004])


class Scaled(nn.Module):
    """A net that carries the mean and the standard deviation of its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", MEAN)
        self.register_buffer("scale", STD)
        draw = torch.Generator().manual_seed(1)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        for w in self.body.parameters():
            w.data = torch.randn(w.shape, generator=draw)

    def forward(self, row: Tensor) -> Tensor:
        return self.body((row - self.centre) / self.scale)


def table(n: int = 240) -> Tensor:
    return MEAN + STD * torch.randn(n, 6, generator=torch.Generator().manual_seed(4))


def after(line: str, x: Tensor) -> Tensor:
    """Return a table after a line of code."""
    space = {"torch": torch, "x": x.clone()}
    exec(line, space)
    return space["x"]


def off(x: Tensor, net: nn.Module | None = None) -> Any:
    net = (net or Scaled()).eval().requires_grad_(False)
    return stored_columns(tensors(net, x), x, NAMES)


@pytest.mark.slow
@pytest.mark.truth("planted: the change that undoes it")
def test_a_column_that_does_not_fit_is_named_with_the_change_that_makes_it_fit() -> None:
    x = table()
    assert off(x) is None
    assert off(x * 1.2 + 0.3 * STD) is None
    assert off(10 * x) is None  # most columns do not fit: all inputs are in another form
    for at, made, said in (
        (2, lambda c: c * 2.20462, ("with weight divided by 2.20462",)),
        (1, lambda c: c * 100, ("with height divided by 100",)),
        (4, lambda c: c.exp(), ("with the logarithm of sugar",)),
        (3, lambda c: 0 * c + 7, ()),
    ):
        y = x.clone()
        y[:, at] = made(x[:, at])
        found = off(y)
        assert [c.name for c in found.off] == [NAMES[at]]
        assert (found.words, found.n_columns) == (said, 6)
        if said:
            assert torch.allclose(found.change(y), x, rtol=1e-3)
            assert found.change.columns == (at,)
            assert torch.allclose(after(found.change.line, y), x, rtol=1e-3)
    y = x[:, [4, 1, 2, 3, 0, 5]]
    assert off(y).words == ("with age and sugar exchanged",)
    y[:, 2] *= 2.20462
    both = off(y)
    assert len(both.words) == 2
    assert set(both.change.columns) == {0, 2, 4}
    assert torch.allclose(after(both.change.line, y), x, rtol=1e-3)


@pytest.mark.truth("two samples of one law without a variance, and of one with")
def test_a_column_whose_variance_a_few_rows_make_up_fits() -> None:
    draw = torch.Generator().manual_seed(2)
    for power, is_off in ((1.2, False), (0.0, True)):
        x = table()
        x[:, 2] = 70 + 0.2 * torch.rand(240, generator=draw).pow(-power) * x[:, 2].sub(70).sign()
        assert (off(x) is not None) == is_off


@pytest.mark.slow
@pytest.mark.truth("an exponential average from mean 0 and variance 1")
def test_what_is_left_of_a_new_batch_norm_is_taken_off_first() -> None:
    x = table(600)
    norm = nn.BatchNorm1d(6)
    for i in range(40):
        norm(x[15 * i % 570 :][:30])
    assert norm.running_var is not None
    assert float(norm.running_var[1]) > 2 * float(STD[1] ** 2)
    assert off(x, nn.Sequential(norm, nn.Linear(6, 3))) is None
    y = x.clone()
    y[:, 0] *= 12
    found = off(y, nn.Sequential(norm, nn.Linear(6, 3)))
    assert ([c.name for c in found.off], found.where) == (["age"], "0.running_mean")


@pytest.mark.slow
@pytest.mark.truth(
    "planted: one column ten times larger, a constant on a logit mends most rows too"
)
def test_the_column_is_the_cause_and_not_a_constant_on_a_logit() -> None:
    net, x = Scaled().eval().requires_grad_(False), table(300)
    label = net(x).argmax(1)

    def report(x: Tensor) -> Any:
        frame = pd.DataFrame(x.numpy(), columns=list(NAMES)).assign(label=label.numpy())
        settings = ScanSettings(progress=False)
        return sonde.scan(net, frame, label_column="label", settings=settings)

    y = x.clone()
    y[:, 2] *= 10
    findings = report(y).findings
    cause = [f for f in findings if f["code"] == "SND015"]
    assert "weight divided by 10" in cause[0]["fix"]
    line = cause[0]["fix"].partition("  #")[0]
    assert torch.allclose(after(line, y), x, rtol=1e-4)
    assert {f["because_of"] for f in findings if f["code"] in ("SND039", "SND062")} == {"SND015"}
    assert not [f for f in report(x).findings if f["code"] == "SND015"]


def test_a_temperature_is_no_repair() -> None:
    draw = torch.Generator().manual_seed(2)
    label = torch.arange(60) % 4
    logits = torch.randn(60, 4, generator=draw) + 2 * torch.eye(4)[label]
    chooses = torch.arange(60) % 2 == 0
    losses = [cooled_loss(2**k * logits, label, chooses) for k in (0, 3)]
    assert losses[0] is not None
    assert losses[1] is not None
    torch.testing.assert_close(losses[0], losses[1])
    between = cooled_loss(2**0.25 * logits, label, chooses)  # no factor of a coarse grid
    assert between is not None
    torch.testing.assert_close(losses[0], between, rtol=0.05, atol=1e-3)
    assert cooled_loss(logits / 0, label, chooses) is None


@pytest.mark.truth("the derivatives of the log loss, which are 0 at its minimum")
def test_fitted_constants_and_factor_are_the_minimum_of_the_loss() -> None:
    draw = torch.Generator().manual_seed(9)
    x = 2 * torch.randn(400, 3, generator=draw, dtype=torch.float64)
    label = (
        (0.4 * x + torch.tensor([0.0, 1.5, -0.7])).softmax(1).multinomial(1, generator=draw)[:, 0]
    )
    scale, constants = fitted_constants(x, label, torch.eye(3, dtype=torch.float64))
    gradient = ((scale * x + constants).softmax(1) - torch.eye(3)[label].double()) / 400
    assert (gradient.sum(0) + 2 * RIDGE * constants).abs().max() < 1e-5
    assert abs(float((gradient * x).sum())) < 1e-5
    assert float(constants[1] - constants[2]) > 1.5
