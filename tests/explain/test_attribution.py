"""Edges that every attribution shares: what an objective, a baseline and a site may be."""

import pytest
import torch
from torch import nn

from sonde.core import InputError, ShapeError
from sonde.explain import Baseline, GradTimesInput, IntegratedGradients, Objective, Saliency

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, generator=DRAW)


class TwoWays(nn.Module):
    """A branch that the answer ignores, beside the one that it comes from."""

    def __init__(self):
        super().__init__()
        self.used, self.ignored = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        self.ignored(x)
        return self.used(x)


@pytest.mark.truth("a branch that no answer comes from: its effect is 0")
def test_a_site_that_the_answer_ignores_is_zero_and_said():
    found = Saliency().explain(TwoWays(), X, site="ignored")
    assert "unused" in found.flags
    assert not torch.as_tensor(found.value).any()
    assert "unused" not in Saliency().explain(TwoWays(), X, site="used").flags


@pytest.mark.truth("batch norm by its running moments is an affine map of each row alone")
def test_batch_norm_in_training_mode_does_not_mix_rows():
    norm, last = nn.BatchNorm1d(3), nn.Linear(3, 2)
    net = nn.Sequential(norm, last).train()
    norm.running_mean, norm.running_var = torch.ones(3), torch.full((3,), 4.0)
    objective = Objective(target=1)
    found = torch.as_tensor(GradTimesInput().explain(net, X, objective=objective).value)
    want = X * last.weight[1].detach() / (4.0 + norm.eps) ** 0.5
    assert torch.allclose(found, want, atol=1e-6)
    assert net.training
    assert torch.equal(norm.running_mean, torch.ones(3))


def test_targets_and_baselines_that_do_not_fit_are_refused():
    net = nn.Linear(3, 2)
    with pytest.raises(InputError, match=r"targets in 0\.\.1, got 2 to 2"):
        Saliency().explain(net, X, objective=Objective(target=2))
    with pytest.raises(InputError, match="target for each of 4 rows, got 3"):
        Saliency().explain(net, X, objective=Objective(target=[0, 1, 0]))
    wrong = Baseline("values", values=torch.zeros(4, 5))
    with pytest.raises(ShapeError, match="5"):
        IntegratedGradients(baseline=wrong).explain(net, X)


class Cubes(nn.Module):
    """A sum of cubes and a number, in some unit."""

    def __init__(self, unit):
        super().__init__()
        self.unit = unit

    def forward(self, x):
        return self.unit * (x**3 + 7).sum(1, keepdim=True)


@pytest.mark.essential
@pytest.mark.truth("cubes: the rise from the baseline, whatever the unit of the objective")
@pytest.mark.parametrize("unit", [1e-3, -1.0, 1e4])
def test_parts_that_do_not_add_up_are_said_in_any_unit(unit):
    net, x = Cubes(unit).double(), X.double().abs() + 1
    base = Baseline("constant", constant=0.5)
    for steps, short in ((1, True), (400, False)):
        found = IntegratedGradients(steps, base).explain(net, x, objective=Objective(target=0))
        rise = unit * (x**3 - 0.125).sum(1)
        assert found.gap is not None
        torch.testing.assert_close(found.gap, rise - torch.as_tensor(found.value).sum(1))
        assert ("incomplete" in found.flags) == short


class Rounded(nn.Module):
    """Answers that are steps: no gradient reaches the input."""

    def forward(self, x):
        return x.detach().round()


def test_an_objective_without_gradient_is_said():
    found = Saliency().explain(Rounded(), X)
    assert "unused" in found.flags
