"""The four numbers of a change, against closed forms."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde.core import Add, InputError, Model
from sonde.data import open_inputs
from sonde.run.changing.acts import edit_act, edit_controls, plan_act
from sonde.run.changing.judge import JudgedSide, judge
from sonde.weights import LowRank, RewritePlan
from sonde.weights.control import random_plan


def net() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


def inputs(model: Model, label: int, n: int = 40) -> Any:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(label))
    return open_inputs(model, [{"x": row, "label": label} for row in x], batch_size=16)


def log_p(model: nn.Module, label: int, shift: torch.Tensor | float = 0.0) -> torch.Tensor:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(label))
    hidden = model[1](model[0](x)) + shift  # type: ignore[index]
    return torch.log_softmax(model[2](hidden).double(), 1)  # type: ignore[index]


@pytest.mark.truth("differences of log-softmax, computed by hand")
@torch.no_grad()
def test_effect_and_damage_are_differences_of_log_probabilities():
    model, direction = net(), torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 1.0])
    sides = (JudgedSide("up", inputs(model, 1)), JudgedSide("down", inputs(model, 2), -1))
    found = judge(
        model, edit_act(model, Add(direction), ["1"]), sides, inputs(model, 0), sites=["1"]
    )
    m = model.module
    rise = {k: (log_p(m, k, direction) - log_p(m, k))[:, k] for k in (0, 1, 2)}
    assert found.effect.value == pytest.approx(float(rise[1].mean() - rise[2].mean()), abs=1e-6)
    assert found.by_side["up"].se == pytest.approx(float(rise[1].std() / 40**0.5), rel=1e-5)
    assert found.loss.value == pytest.approx(-float(rise[0].mean()), abs=1e-6)
    old, new = log_p(m, 0), log_p(m, 0, direction)
    assert found.kl.value == pytest.approx(float((old.exp() * (old - new)).sum(1).mean()), abs=1e-6)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    states = m[1](m[0](x)).double() @ (direction / direction.norm()).double()  # type: ignore[index]
    spread = float(states.std(correction=0))
    assert found.size == pytest.approx(float(direction.norm()) / spread, rel=1e-5)
    assert "standard deviations" in found.too_large


def test_the_head_s_own_direction_beats_random_ones_of_the_same_length():
    model = net()
    direction = (model.module[2].weight[1] - model.module[2].weight[2]).detach()  # type: ignore[index]
    controls = edit_controls(model, Add(direction), ["1"])
    sides = (JudgedSide("up", inputs(model, 1)), JudgedSide("down", inputs(model, 2), -1))
    found = judge(
        model, edit_act(model, Add(direction), ["1"]), sides, inputs(model, 0), controls=controls
    )
    assert found.beyond_control > 2
    assert len(set(found.controls)) == 10


def test_changed_weights_are_judged_like_edits():
    model, direction = net(), torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 1.0])
    hooked = judge(
        model,
        edit_act(model, Add(direction), ["1"]),
        [JudgedSide("up", inputs(model, 1))],
        inputs(model, 0),
    )
    shift = model.module[2].weight.detach() @ direction  # type: ignore[index]
    plan = RewritePlan.of(model, {"2.bias": LowRank(shift[:, None], torch.ones(1, 1))}, "shift")
    folded = judge(
        model, plan_act(model, plan), [JudgedSide("up", inputs(model, 1))], inputs(model, 0)
    )
    assert folded.effect.value == pytest.approx(hooked.effect.value, abs=1e-6)
    control = random_plan(model, plan, 0)
    change = control.changes["2.bias"].of(model.module[2].bias) - model.module[2].bias  # type: ignore[index]
    assert float(change.detach().norm()) == pytest.approx(float(shift.norm()), rel=1e-5)


def test_data_without_labels_or_examples_are_refused():
    model = net()
    act = edit_act(model, Add(torch.ones(6)), ["1"])
    bare = open_inputs(model, [torch.randn(4) for _ in range(3)])
    with pytest.raises(InputError, match="with labels"):
        judge(model, act, [JudgedSide("up", bare)], inputs(model, 0))
    with pytest.raises(InputError, match="at least one example"):
        judge(model, act, [], inputs(model, 0))
