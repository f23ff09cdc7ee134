"""Planted scenes of agents, and what nets foretell of them."""

import pytest
import torch

from sonde_studies._agents import (
    DELAY,
    DRAWS,
    LEFT,
    NOISE,
    RIGHT,
    AgentNet,
    LeavingNet,
    scenes,
)
from sonde_studies.agents_in_scenes import by_lot
from sonde_studies.study import NULL_LEVEL, Outcome


def test_agents_follow_their_leader_and_leave_by_an_open_way():
    some = scenes(3, 300)
    leads = some.moves[:, :, 0, 2] == 1
    assert torch.equal(leads.sum(1), torch.ones(300).long())
    leader = (some.moves[..., :2] * leads[..., None, None]).sum(1)
    for agent in range(3):
        follows = ~leads[:, agent]
        away = some.moves[follows, agent, DELAY:, :2] - leader[follows, :-DELAY]
        assert float(away.std()) == pytest.approx(2**0.5 * NOISE, rel=0.05)
    assert torch.equal(some.layout[:, [LEFT, RIGHT]] == 0, some.open)
    moved = some.after[..., 0] - some.moves[:, :, -3:, 0].mean(2)
    right = moved > 0
    assert torch.equal(right.all(1), right.any(1))
    assert some.open.gather(1, right[:, :1].long()).all()
    both = some.open.all(1)
    assert 0.35 < float(right[both, 0].float().mean()) < 0.65


@torch.no_grad()
def test_nets_read_no_later_step_and_other_agents_only_where_they_should():
    x = scenes(1, 4).moves
    later, other = x.clone(), x.clone()
    later[:, :, 9:] += 1.0
    other[:, 1] += 1.0
    for how, hears in (("together", 1), ("alone", 0), ("pooled", 1), ("recurrent", 0)):
        torch.manual_seed(0)
        net = AgentNet(how)
        for p in net.parameters():
            p += 0.3 * torch.randn(p.shape)
        torch.testing.assert_close(net(later)[:, :, :9], net(x)[:, :, :9])
        assert bool(((net(other) - net(x))[:, 0].abs() > 1e-6).any()) == hears
        torch.testing.assert_close(net(x[:2]), net(x)[:2])


@torch.no_grad()
def test_a_latent_of_the_scene_is_one_for_all_agents():
    some = scenes(0, 5)
    for latent, rows in (("scene", 5), ("agent", 15)):
        net = LeavingNet(latent)
        context, each = net.contexts(some, torch.arange(5))
        assert context.shape == (rows, 14)
        assert each.shape == (5, 3, 14)
        assert net.drawn(some, 0.0, 0).shape == (DRAWS, 5, 3, 2)
    blind = LeavingNet("scene", layout=False)
    assert float(blind.contexts(some, torch.arange(5))[0][:, :8].abs().max()) == 0


@pytest.mark.slow
def test_scenes_that_were_learned_are_seen_by_layouts_by_lot():
    for leaks in (False, True):
        found = list[float]()
        for seed in range(5):
            fit = scenes(2 * seed, 60)
            judge = fit if leaks else scenes(2 * seed + 1, 400)
            found.append(by_lot(fit, judge, seed, 300) - 0.5)
        assert (not Outcome(tuple(found), 0.0, NULL_LEVEL).covers) == leaks, found
