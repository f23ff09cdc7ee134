"""Weights that matter to the forget examples alone shrink, by the rule and no further."""

import pytest
import torch
from torch import nn

from forgetting import accuracy, cnn, digits, items_of
from sonde.core import InputError, Model, StateError
from sonde.data import open_inputs
from sonde.edit import SelectiveDampening
from sonde.tap import squared_gradients


def world(n=90, n_forget=12, seed=0):
    """Return a logistic regression, its rows, labels, and how many rows are to be forgotten."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=draw, dtype=torch.float64)
    label = (torch.arange(n) < n_forget).long() * 2 + torch.arange(n) % 2 * (
        torch.arange(n) >= n_forget
    )
    net = nn.Sequential(nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    return Model(net), x, label, n_forget


def sides(model, x, label, k):
    rows = [{"x": row, "label": int(c)} for row, c in zip(x, label, strict=True)]
    return {"forget": open_inputs(model, rows[:k]), "retain": open_inputs(model, rows[k:])}


def fisher(model, x, label):
    """Return the mean of ``(p - y)^2 x^2`` for each weight, by hand."""
    wrong = model.module(x).softmax(1).detach() - nn.functional.one_hot(label, 3)
    return {
        "0.weight": torch.einsum("nc,nd->cd", wrong.square(), x.square()) / len(x),
        "0.bias": wrong.square().mean(0),
    }


@pytest.mark.truth("Fisher information of a logistic regression by hand")
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_selected_weights_shrink_to_the_ratio_and_all_others_keep_their_bits(alpha):
    model, x, label, k = world()
    of_part, of_all = fisher(model, x[:k], label[:k]), fisher(model, x, label)
    bar = max(1.0, 0.35 * 90 / 12) if alpha is None else alpha
    plan = SelectiveDampening(alpha).plan(model, sides(model, x, label, k))
    new = plan.fold(model)
    n_selected = 0
    for name, old in model.module.named_parameters():
        chosen = of_part[name] > bar * of_all[name]
        left = torch.where(chosen, (of_all[name] / of_part[name]).clamp(max=1.0), 1.0)
        found = new.get_parameter(name)
        assert torch.allclose(found, old * left, rtol=1e-12)
        assert torch.equal(found[~chosen], old[~chosen])
        n_selected += int(chosen.sum())
    assert 0 < n_selected == round(plan.figures["share_changed"] * 18)


@pytest.mark.slow
def test_a_class_is_forgotten_and_the_others_are_kept():
    x, label = digits()
    net = cnn(x[:1200], label[:1200], steps=60, rate=0.003)
    model = Model(net)
    items = items_of(x[:1200], label[:1200])
    data = {
        "forget": open_inputs(model, [i for i in items if i["label"] == 3]),
        "retain": open_inputs(model, [i for i in items if i["label"] != 3]),
    }
    before = accuracy(net, x[1200:], label[1200:])
    new = SelectiveDampening().plan(model, data).fold(model)
    after = accuracy(new, x[1200:], label[1200:])
    assert before[3] > 0.8
    assert after[3] < before[3] / 2
    kept = [after[c] - before[c] for c in range(10) if c != 3]
    assert sum(kept) / 9 > -0.02
    assert accuracy(net, x[1200:], label[1200:]) == before


def test_what_cannot_select_anything_is_refused():
    model, x, label, k = world()
    data = sides(model, x, label, k)
    with pytest.raises(InputError, match=r"alpha below 7\.5 .*use at most 2\.62"):
        SelectiveDampening(alpha=10.0).plan(model, data)
    with pytest.raises(InputError, match="above 0"):
        SelectiveDampening(alpha=0.0)
    with pytest.raises(InputError, match="got no 'retain'"):
        SelectiveDampening().plan(model, {"forget": data["forget"]})
    squares = squared_gradients(model, data["forget"], progress=False)
    with pytest.raises(
        InputError, match="fewer forget examples than examples in all, got 12 of 12"
    ):
        SelectiveDampening(0.5).plan(model, {"forget": squares, "all": squares})
    other, *_ = world(seed=1)
    with pytest.raises(StateError, match="measured on another model"):
        SelectiveDampening().plan(other, {"forget": squares, "all": squares})
