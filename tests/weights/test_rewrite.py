"""Plans of new weights: what fold shares, keeps and refuses."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde.core.errors import ShapeError, SondeWarning, StateError
from sonde.weights import Exchange, LowRank, RewritePlan, Sparse


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_folded_weights_are_the_sum_and_all_else_is_shared():
    model = net()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    left, right = torch.randn(4, 2), torch.randn(2, 3)
    new = RewritePlan.of(model, {"0.weight": LowRank(left, right)}).fold(model)
    expected = (before["0.weight"].double() + left.double() @ right.double()).float()
    assert torch.equal(new[0].weight, expected)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert new[2].weight.data_ptr() == model[2].weight.data_ptr()
    assert new[1].running_mean.data_ptr() == model[1].running_mean.data_ptr()
    assert new[0].weight.requires_grad
    assert new[0].weight.is_leaf


def test_tied_weights_that_stay_are_still_tied():
    model = net()
    tied = nn.ModuleList([model[0], nn.Linear(3, 4), nn.Linear(4, 2)])
    tied[1].weight = model[0].weight
    new = RewritePlan.of(tied, {"2.bias": Exchange(torch.zeros(2))}).fold(tied)
    assert new[0].weight is new[1].weight
    assert new[2].bias.tolist() == [0.0, 0.0]


def test_a_model_of_a_half_type_stays_one_and_a_lost_edit_is_told():
    model = nn.Linear(2, 2).half()
    torch.nn.init.ones_(model.weight)
    far = RewritePlan.of(model, {"weight": Sparse(torch.tensor([1]), torch.tensor([1.25]))})
    new = far.fold(model)
    assert new(torch.ones(1, 2).half()).dtype == torch.float16
    assert new.weight.flatten().tolist() == [1.0, 1.25, 1.0, 1.0]
    near = {"weight": Sparse(torch.tensor([1]), torch.tensor([1.00001]))}
    assert near["weight"].of(model.weight)[0, 1].item() == pytest.approx(1.00001, abs=1e-7)
    with pytest.warns(SondeWarning, match="more than half of the change of weight"):
        RewritePlan.of(model, near).fold(model)


def test_a_plan_for_other_weights_is_refused():
    model, other = net(), net()
    plan = RewritePlan.of(model, {"0.bias": Exchange(torch.zeros(4))})
    plan.fold(other)
    other[0].bias.data += 1
    with pytest.raises(StateError, match=r"0\.bias is not the tensor"):
        plan.fold(other)
    with pytest.raises(ShapeError, match="another model"):
        RewritePlan.of(model, {"0.bias": Exchange(torch.zeros(3))}).fold(model)
