"""Forgetting by where states lie: losses by hand, no label read, and a class of digits."""

from functools import cache

import pytest
import torch
from torch import nn

from forgetting import accuracy, cnn, digits, items_of
from sonde.core import EditContext, InputError, Model, Site
from sonde.data import open_inputs
from sonde.edit import LabelAgnosticForget
from sonde.edit.label_agnostic_forget import _Watch, autoencoder, contrast, pushed

SITE = "6"


@cache
def world():
    """Return a net that knows ten digits, and its data: 3 is to be forgotten."""
    x, label = digits()
    model = Model(cnn(x[:900], label[:900], steps=60))
    seen = items_of(x[:900], label[:900])
    parts = {
        "forget": [i for i in seen if i["label"] == 3],
        "retain": [i for i in seen if i["label"] != 3],
    }
    return model, parts


def opened(parts):
    return {name: open_inputs(world()[0], part) for name, part in parts.items()}


def accuracies(net):
    x, label = digits()
    found = accuracy(net, x[900:], label[900:])
    return found[3], (sum(found) - found[3]) / 9


@pytest.mark.slow
def test_a_class_is_forgotten_and_the_others_stay():
    model, parts = world()
    before = [p.clone() for p in model.module.state_dict().values()]
    plan = LabelAgnosticForget(SITE).plan(model, opened(parts))
    own, others = accuracies(plan.fold(model))
    was, were = accuracies(model.module)
    assert was > 0.9
    assert own < 0.25
    assert others > were - 0.1
    assert all(map(torch.equal, before, model.module.state_dict().values()))
    assert not {"7.weight", "7.bias"} & set(plan.changes)


@pytest.mark.slow
@torch.enable_grad()
def test_the_others_stay_where_no_norm_holds_the_states():
    x, label = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide, deep = nn.Linear(64, 96), nn.Linear(96, 48)
        net = nn.Sequential(nn.Flatten(), wide, nn.ReLU(), deep, nn.ReLU(), nn.Linear(48, 10))
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(150):
            chosen = torch.randint(900, (128,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), label[chosen]).backward()
            optimiser.step()
    model = Model(net.eval())
    before = accuracy(net, x[900:], label[900:])
    parts = {name: open_inputs(model, part) for name, part in world()[1].items()}
    after = {}
    for limit in (0.05, float("inf")):
        plan = LabelAgnosticForget("4", answer_limit=limit).plan(model, parts)
        after[limit] = accuracy(plan.fold(model), x[900:], label[900:])
        assert not {"5.weight", "5.bias"} & set(plan.changes)
        assert before[3] > 0.8 > 0.1 > after[limit][3]
    held, free = (sum(found) - found[3] for found in after.values())
    assert held > sum(before) - before[3] - 9 * 0.05
    assert free < held - 9 * 0.1


@pytest.mark.essential
@pytest.mark.truth("the same data with every label gone")
def test_labels_are_never_read_and_the_seed_says_all():
    model, parts = world()
    bare = {name: [{"input": i["input"]} for i in part] for name, part in parts.items()}
    rule = LabelAgnosticForget(SITE, epochs=2, fit_steps=5)
    with_labels, without = (rule.plan(model, opened(p)).changes for p in (parts, bare))
    assert set(with_labels) == set(without)
    assert all(
        torch.equal(change.of(None), without[name].of(None)) for name, change in with_labels.items()
    )


@pytest.mark.truth("losses by hand")
def test_the_losses_are_those_of_the_formulas():
    own, others = torch.tensor([1.0, 3.0]), torch.tensor([0.0])
    e = torch.e
    assert float(pushed(own, others)) == pytest.approx(1 - (e**0.5 + e**0.75) / 2)
    near, far = torch.tensor([0.8]), torch.tensor([0.1, -0.3])
    a, b = e**0.4, (e**0.05 + e**-0.15) / 2
    assert float(contrast(near, far, 2.0)) == pytest.approx(-torch.log(torch.tensor(a / (a + b))))


@pytest.mark.truth("a loop over the real tokens of each example, and over all pixels")
def test_the_state_of_an_example_is_the_mean_over_its_tokens_or_pixels():
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) >= torch.tensor([[4], [0], [2]])
    watch = _Watch()
    assert watch.apply(x, Site("0"), EditContext(mask)) is x
    means = torch.stack([row[real].mean(0) for row, real in zip(x, mask, strict=True)])
    torch.testing.assert_close(watch.rows, means)
    watch.apply(x[:, None], Site("0"), EditContext())
    torch.testing.assert_close(watch.rows, x.mean(1))


@pytest.mark.slow
@torch.enable_grad()
def test_an_autoencoder_knows_its_rows_from_others():
    draw = torch.Generator().manual_seed(0)
    plane = torch.randn(2, 12, generator=draw)
    rows = torch.randn(300, 2, generator=draw) @ plane
    made = autoencoder(rows, 4, 400, draw)
    other = torch.randn(50, 12, generator=draw) * rows.std()
    assert float(made.error(rows).mean()) < 0.3 * float(made.error(other).mean())


def test_bad_input_is_refused():
    model, parts = world()
    with pytest.raises(InputError, match="got no 'retain'"):
        LabelAgnosticForget(SITE).plan(model, {"forget": opened(parts)["forget"]})
    every = opened(parts)
    none = every | {"forget": every["forget"].first(0)}
    with pytest.raises(InputError, match="expected examples in 'forget', got none"):
        LabelAgnosticForget(SITE).plan(model, none)
    with pytest.raises(InputError, match="expected latent above 0"):
        LabelAgnosticForget(SITE, latent=0)

    class Sums(nn.Module):
        def forward(self, input):
            return self.head(input.flatten(1)).sum(0, keepdim=True)

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)

    net = nn.Sequential(Sums(), nn.Identity())
    with pytest.raises(InputError, match="keeps the examples of a batch"):
        LabelAgnosticForget("0").plan(net, opened(parts))
