"""Forgetting by training: losses by hand, and what it does to digits beside a retrained net."""

from functools import cache

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from forgetting import cnn, digits, items_of
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.edit import GradientAscent, NegPreference, RandomLabel, Retrain, forgotten
from sonde.edit.forgetting import membership_attack
from sonde.edit.unlearning import preference_loss

METHODS = {
    "ascent": GradientAscent(),
    "random": RandomLabel(),
    "npo": NegPreference(),
}


@cache
def world():
    """Return a net that knows ten digits, and its data: 3 is to be forgotten."""
    x, label = digits()
    net = cnn(x[:900], label[:900], steps=60)
    model = Model(net)
    seen, fresh = items_of(x[:900], label[:900]), items_of(x[900:], label[900:])
    parts = {
        "forget": [i for i in seen if i["label"] == 3],
        "retain": [i for i in seen if i["label"] != 3],
        "held": [i for i in fresh if i["label"] == 3],
    }
    return model, {name: open_inputs(model, part) for name, part in parts.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_class_is_forgotten_the_others_stay_and_the_seed_says_all(name):
    model, data = world()
    before = [p.clone() for p in model.module.state_dict().values()]
    plan = METHODS[name].plan(model, data)
    found = forgotten(model, plan.fold(model), data["forget"], data["retain"])
    assert found.before["forget"].accuracy > 0.9
    assert found.after["forget"].accuracy < 0.3
    assert found.after["retain"].accuracy > found.before["retain"].accuracy - 0.05
    assert plan.figures["loss_forget"] == pytest.approx(found.after["forget"].loss, rel=1e-4)
    assert all(map(torch.equal, before, model.module.state_dict().values()))
    again = METHODS[name].plan(model, data).fold(model)
    assert all(
        map(torch.equal, again.state_dict().values(), plan.fold(model).state_dict().values())
    )


@pytest.mark.truth("log-odds by hand, and ascent as the limit of a small beta")
def test_the_preference_loss_is_that_of_the_odds_and_ascent_where_beta_is_small():
    loss = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    before = torch.tensor([1.0, 0.25], dtype=torch.float64)
    ratio = torch.exp(before - loss)
    by_hand = 2 / 0.1 * torch.log1p(ratio**0.1)
    assert torch.allclose(preference_loss(loss, before, 0.1), by_hand)
    (slope,) = torch.autograd.grad(preference_loss(loss, before, 1e-6).sum(), loss)
    assert torch.allclose(slope, -torch.ones(2, dtype=torch.float64), atol=1e-5)


@pytest.mark.truth("scikit-learn's roc_auc_score of losses with their sign turned")
def test_the_attack_is_the_area_under_the_curve_of_low_losses():
    draw = torch.Generator().manual_seed(0)
    members, others = torch.rand(5, generator=draw), torch.rand(3, generator=draw) + 0.2
    want = roc_auc_score([1] * 5 + [0] * 3, -torch.cat([members, others]))
    assert 0.5 < want < 1
    assert membership_attack(members, others).value == pytest.approx(want)


@pytest.mark.slow
def test_a_model_trained_anew_never_saw_and_shows_what_to_expect():
    model, data = world()
    new = Retrain(epochs=6, rate=0.01).plan(model, data).fold(model)
    found = forgotten(model, model.module, data["forget"], data["retain"], data["held"], new)
    assert found.retrained is not None
    assert found.retrained["forget"].accuracy == 0.0
    assert found.retrained["retain"].accuracy > 0.9
    assert found.attack is not None
    assert found.attack_retrained is not None
    assert abs(found.attack_retrained.value - 0.5) < 0.15
    assert found.json()["after"]["forget"]["n"] == len(data["forget"])


@pytest.mark.slow
def test_bad_input_is_refused():
    model, data = world()
    with pytest.raises(InputError, match="got no 'retain'"):
        GradientAscent().plan(model, {"forget": data["forget"]})
    with pytest.raises(InputError, match="expected rate above 0"):
        NegPreference(rate=0.0)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 10))

        def forward(self, input):
            return input.flatten(1) @ self.weight

    with pytest.raises(InputError, match="no method to reinitialise them"):
        Retrain().plan(Own(), data)


def test_plain_tensors_are_taken_with_labels_and_refused_without():
    draw = torch.Generator().manual_seed(3)
    x, module = torch.randn(40, 5, generator=draw), nn.Linear(5, 3).train()
    y = (x @ torch.randn(5, 3, generator=draw)).argmax(1)
    sides = {"forget": (x[:9], y[:9]), "retain": (x[9:], y[9:])}
    plan = GradientAscent(epochs=2, stop_loss=50.0).plan(module, sides)
    assert set(plan.changes) == {"weight", "bias"}
    assert module.training
    for method in (*METHODS.values(), Retrain()):
        with pytest.raises(InputError, match=r"\.plan: expected labels, .* in 'retain', got 31"):
            method.plan(module, sides | {"retain": x[9:]})
    with pytest.raises(InputError, match="in 'forget', got 9 examples without"):
        GradientAscent().plan(module, sides | {"forget": x[:9]})


def test_the_examples_of_a_class_are_those_with_its_label():
    model, _ = world()
    data = open_inputs(model, items_of(*(part[:50] for part in digits())))
    three, rest = data.of_class("3"), data.of_class("3", without=True)
    labels = [torch.cat([b.label for b in part.batches(0, len(part))]) for part in (three, rest)]
    assert bool((labels[0] == 3).all())
    assert not bool((labels[1] == 3).any())
    assert len(three) + len(rest) == 50
    assert len(rest.first(7)) == 7
    assert three.identity() != rest.identity()
    with pytest.raises(InputError, match=r"expected a class among 0, 1, .*got '33'"):
        data.of_class("33")


class Counted(nn.Module):
    """A linear net that counts the rows of its forward passes."""

    rows = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        Counted.rows += len(x)
        return self.linear(x)


@pytest.mark.slow
@pytest.mark.truth("rows of forward passes; the loss of all forget examples at the end")
def test_ascent_stops_at_its_loss_and_reads_rows_in_proportion_to_the_data():
    draw = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    net = Counted().eval()
    x = torch.randn(1280, 5, generator=draw)
    y = net(x).argmax(1)
    rows: list[int] = []
    for n in (640, 1280):
        Counted.rows = 0
        sides = dict.fromkeys(("forget", "retain"), (x[:n], y[:n]))
        GradientAscent(epochs=4, stop_loss=1e3).plan(net, sides)
        rows.append(Counted.rows)
    assert rows[1] < 2.1 * rows[0]
    start = float(nn.functional.cross_entropy(net(x), y).detach())
    rule = GradientAscent(rate=1e-2, retain_weight=0.0, stop_loss=start + 0.3)
    found = rule.plan(net, dict.fromkeys(("forget", "retain"), (x, y))).figures["loss_forget"]
    assert start + 0.3 < found < start + 0.4
