from dataclasses import replace

import pytest
import torch
from torch import nn

from sonde.core import InputError, Model
from sonde.edit import DirectionalAblation, choose_ablation
from tap_inputs import Arrays


class Block(nn.Module):
    """Adds what a linear map makes of the state."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, h):
        return h + torch.relu(h @ self.weight.T)


class Net(nn.Module):
    """Unit 0 of the input calls the behaviour forth: block 1 writes it to unit 4, answer 0."""

    def __init__(self):
        super().__init__()
        weights = [torch.zeros(6, 6) for _ in range(3)]
        weights[1][4, 0] = 3.0
        self.blocks = nn.ModuleList(map(Block, weights))
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([-2.0, 0.0, 0.0]))
            self.head.weight[0, 4], self.head.weight[1, 1], self.head.weight[2, 2] = 1.0, 1.0, 1.0

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def prompts(trigger, seed, n=40):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    x[:, 0], x[:, 4] = (2.0 if trigger else -1.0), 0.0
    return x


def states(net, x):
    found = []
    for block in net.blocks:
        x = block(x)
        found.append(x)
    return found


def log_odds(logits):
    return float((logits[:, 0] - logits[:, 1:].logsumexp(1)).mean())


def run(net, x, direction=None, add=None):
    """Run the net with a direction taken out after every block, or a vector added after one."""
    for i, block in enumerate(net.blocks):
        x = block(x)
        if direction is not None:
            x = x - (x @ direction)[:, None] * direction
        if add is not None and add[0] == i:
            x = x + add[1]
    return net.head(x)


@pytest.fixture
def world():
    net = Net().eval()
    fit = {k: states(net, prompts(k, seed=k)) for k in (0, 1)}
    label = torch.arange(80) // 40
    found = {
        f"blocks.{i}:out": DirectionalAblation().fit(torch.cat([fit[0][i], fit[1][i]]), label)
        for i in range(3)
    }
    usual, showing = prompts(0, seed=2), prompts(1, seed=3)
    return Model(net, task="classifier"), found, Arrays(showing), Arrays(usual)


@pytest.mark.truth("a planted net run by hand with each direction taken out or added")
def test_candidates_are_judged_by_what_they_do(world):
    model, found, showing, usual = world
    net = model.module
    choice = choose_ablation(
        model, found, showing, usual, targets=[0], sites="blocks.*", max_kl=9.0, deepest=1.0
    )
    with torch.no_grad():
        plain = run(net, usual.x).log_softmax(1)
        assert choice.plain[0] == pytest.approx(log_odds(run(net, showing.x)), abs=1e-5)
        for i, trial in enumerate(choice.trials):
            result = found[trial.site]
            vector = result.vector.float()
            assert trial.depth == i / 2
            bypass = log_odds(run(net, showing.x, vector))
            induce = log_odds(run(net, usual.x, add=(i, vector * result.length)))
            after = run(net, usual.x, vector).log_softmax(1)
            kl = float((plain.exp() * (plain - after)).sum(1).mean())
            got = (trial.bypass, trial.induce, trial.kl)
            assert got == pytest.approx((bypass, induce, kl), abs=1e-4)
    best = min(choice.trials, key=lambda trial: trial.bypass)
    assert choice.site == best.site
    assert best.bypass < choice.plain[1] + 1.0 < choice.plain[0]


@pytest.mark.slow
def test_a_candidate_that_does_not_qualify_is_passed_over(world):
    model, found, showing, usual = world
    options = {"targets": [0], "sites": "blocks.*", "max_kl": 9.0}
    free = choose_ablation(model, found, showing, usual, **options, deepest=1.0)
    deepest = max(t.depth for t in free.trials if t.site != free.site)
    assert not any("beyond" in t.refused for t in free.trials)
    bound = choose_ablation(model, found, showing, usual, **options, deepest=0.1)
    assert bound.site == "blocks.0:out"
    assert all("beyond 0.1" in t.refused for t in bound.trials[1:]), deepest
    with pytest.raises(InputError, match=r"none of 3 candidates passes. blocks.0:out: KL"):
        choose_ablation(model, found, showing, usual, targets=[0], sites="blocks.*", max_kl=-1.0)
    dead = {**found, "blocks.1:out": replace(found["blocks.1:out"], flags=("dead",))}
    trials = choose_ablation(model, dead, showing, usual, **options).trials
    assert trials[1].refused == "no direction"


def test_a_direction_whose_removal_raises_the_behaviour_is_passed_over(world):
    model, found, showing, usual = world
    rival = torch.zeros(6, dtype=torch.float64)
    rival[1] = -1.0  # less of another answer: it induces the behaviour, as any rival's opposite
    rivals = {**found, "blocks.0:out": replace(found["blocks.0:out"], vector=rival)}
    options = {"targets": [0], "sites": "blocks.*", "max_kl": 9.0}
    trial = choose_ablation(model, rivals, showing, usual, **options).trials[0]
    with torch.no_grad():
        before = log_odds(run(model.module, showing.x))
        assert log_odds(run(model.module, showing.x, -rival.float())) > before
    assert trial.refused.startswith("does not remove it")


@pytest.mark.slow
def test_targets_are_found_where_none_are_named(world):
    model, found, showing, usual = world
    choice = choose_ablation(model, found, showing, usual, sites="blocks.*", max_kl=9.0)
    assert choice.targets == (0,)
    with pytest.raises(InputError, match="expected targets below 3"):
        choose_ablation(model, found, showing, usual, targets=[3])
    with pytest.raises(InputError, match="expected candidates and prompts of both kinds"):
        choose_ablation(model, {}, showing, usual)
