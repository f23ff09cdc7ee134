"""Patches against whole forwards with a hook, closed forms, and a circuit written by hand."""

from typing import Any

import pytest
import torch
from tests.student import student
from torch import nn

from cache_name import CACHE
from circuits import ANSWER, CLEAN, CORRUPT, INSTEAD, Induction
from models import gpt2
from narrow import present
from sonde.core import InputError, SiteError
from sonde.explain import ActivationPatching, AttributionPatching, Objective
from sonde.explain.patching import mean_share
from sonde.tap import cache_of
from tap_snapshot import assert_unchanged, snapshot

A = {"input_ids": torch.tensor([[1, 5, 6, 7, 9], [1, 9, 8, 3, 4]])}
B = {"input_ids": torch.tensor([[1, 5, 2, 7, 9], [1, 3, 8, 3, 4]])}
MARGIN = Objective("margin", target=[3, 4], other=[8, 9])


@pytest.fixture(scope="module")
def net() -> Any:
    return gpt2().double()  # in single precision kernels differ by more than the shares


def margins(net: Any, given: dict[str, Any], hook: Any = None, path: str = "transformer.h.1"):
    handle = net.get_submodule(path).register_forward_hook(hook) if hook else None
    with torch.no_grad():
        logits = net(**given).logits[:, -1]
    if handle:
        handle.remove()
    return logits[[0, 1], [3, 4]] - logits[[0, 1], [8, 9]]


@pytest.mark.truth("whole forwards with a hook, one for each point")
@pytest.mark.parametrize("how", ["denoise", "noise"])
def test_every_point_is_a_whole_forward_with_one_state_exchanged(net, how):
    before = snapshot(net)
    found = ActivationPatching(how, rows=6).explain(
        net, A, corrupt=B, objective=MARGIN, site="blocks"
    )
    assert_unchanged(before, net)
    base, source = (B, A) if how == "denoise" else (A, B)
    low, high = margins(net, base), margins(net, source)
    seen: list[Any] = []
    margins(net, source, lambda _, __, out: seen.append(out.clone()))
    for point in range(5):

        def hook(module, args, out, point=point):
            out = out.clone()
            out[:, point] = seen[0][:, point]
            return out

        share = (margins(net, base, hook) - low) / (high - low)
        row = found.sites.index("transformer.h.1:out")
        assert found.value[row, point] == pytest.approx(float(share.mean()), abs=1e-5)
    assert float(found.value[0, 0]) == 0.0  # the first token is the same
    assert found.conventions["restart"] == "from each site on"


def linear() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()


@pytest.mark.truth("closed form: of a linear net estimate and patch are weight times difference")
def test_estimates_of_a_linear_net_are_exact():
    net = linear()
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    goal = Objective(target=1)
    real = ActivationPatching(over="units").explain(net, a, corrupt=b, objective=goal, site="0")
    torch.testing.assert_close(real.effects[:, 0], (net[0](a) - net[0](b)) * net[1].weight[1])
    for steps in (1, 3):
        found = AttributionPatching(over="units", ig_steps=steps).explain(
            net, a, corrupt=b, objective=goal, site="0"
        )
        torch.testing.assert_close(found.value, real.value)
        assert found.gap == pytest.approx(0.0, abs=1e-12)
    assert float(real.value.sum()) == pytest.approx(1.0)


def test_steps_along_a_sites_own_way_add_up_and_the_gap_falls(net):
    net = gpt2().double()
    way = AttributionPatching(path="site", ig_steps=12, check=15)
    found = way.explain(net, A, corrupt=B, objective=MARGIN)
    torch.testing.assert_close(
        found.value.sum(1), torch.ones(len(found.sites)).double(), atol=1e-3, rtol=0
    )
    once, more = (
        AttributionPatching(ig_steps=n, check=5).explain(
            net, A, corrupt=B, objective=MARGIN, site="transformer.h.0"
        )
        for n in (1, 3)
    )
    assert present(once.gap) > 2 * present(more.gap) > 0
    real = ActivationPatching().explain(net, A, corrupt=B, objective=MARGIN, site="transformer.h.0")
    whole = (real.source - real.base)[:, None, None]
    missed = ((once.effects - real.effects) / whole).square().mean().sqrt()
    assert once.gap == pytest.approx(float(missed), rel=1e-5)  # all 5 points were checked


@pytest.mark.truth("the induction circuit, whose weights were written by hand")
def test_only_the_two_heads_of_an_induction_circuit_count():
    net = Induction()
    goal = Objective("margin", target=ANSWER, other=INSTEAD)
    heads = [f"blocks.{i}.heads.{j}" for i in (0, 1) for j in (0, 1)]
    for how in ("denoise", "noise"):
        found = ActivationPatching(how, over="whole").explain(
            net, CLEAN, corrupt=CORRUPT, objective=goal, site=heads
        )
        assert (found.value[:, 0] > 0.1).tolist() == [True, False, True, False]
    spots = ActivationPatching().explain(net, CLEAN, corrupt=CORRUPT, objective=goal, site=heads)
    assert {spot[:2] for spot in spots.best(2)} == {
        ("blocks.1.heads.0:out", 5),
        ("blocks.0.heads.0:out", 2),
    }
    assert all(share == pytest.approx(1.0, abs=1e-2) for *_, share in spots.best(2))


def test_heads_of_an_attention_and_what_runs_do_not_share(net):
    sites = ["transformer.h.0.attn:heads.0", "transformer.h.0.attn:heads.1"]
    one = ActivationPatching(over="whole").explain(net, A, corrupt=B, objective=MARGIN, site=sites)
    both = ActivationPatching(over="whole").explain(
        net, A, corrupt=B, objective=MARGIN, site="transformer.h.0.attn:heads"
    )
    assert "whole forward passes at" in one.conventions["restart"]
    assert 0 < float(both.value) != float(one.value[0, 0])
    same = ActivationPatching().explain(net, A, corrupt=A, objective=MARGIN)
    assert (same.n, same.n_dropped, same.flags) == (0, 2, ("dead",))


class Again(nn.Module):
    """One layer that runs three times, then a read-out."""

    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.step(self.step(self.step(x))))


@pytest.mark.truth("closed form: of a linear net estimate and patch are weight times difference")
def test_one_call_of_a_layer_that_runs_several_times_is_patched():
    torch.manual_seed(0)
    net = Again().double()
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    states, goal = [a, b], Objective(target=1)
    for call in range(3):
        states = [net.step(x).detach() for x in states]
        later = net.head.weight.detach() @ torch.matrix_power(net.step.weight.detach(), 2 - call)
        for method in (ActivationPatching, AttributionPatching):
            found = method(over="units").explain(
                net, a, corrupt=b, objective=goal, site=f"step@{call}"
            )
            torch.testing.assert_close(found.effects[:, 0], (states[0] - states[1]) * later[1])
    with pytest.raises(SiteError, match="several times"):
        ActivationPatching().explain(net, a, corrupt=b, objective=goal, site="step")


def test_zero_mean_and_other_examples_come_in():
    net = linear()
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    state, weight = net[0](b).detach(), net[1].weight[1].detach()
    ways: Any = {"zero": state * 0, "mean": state.mean(0).expand_as(state)}
    for kind, new in ways.items():
        how = ActivationPatching(over="units", replace_by=kind)
        found = how.explain(net, a, corrupt=b, objective=Objective(target=1), site="0")
        torch.testing.assert_close(found.effects[:, 0], (new - state) * weight)
    mixed = ActivationPatching(over="whole", replace_by="resample")
    moved = mixed.explain(net, a, corrupt=b, objective=Objective(target=1), site="0").effects[
        :, 0, 0
    ]
    others = (state[:, None] - state[None]) @ weight
    assert all(any(torch.isclose(-m, o) for o in row) for m, row in zip(moved, others, strict=True))


@pytest.mark.truth("mean and standard error of each part's own pairs, by hand")
def test_shares_are_means_over_the_pairs_that_differ_and_have_the_part():
    draw = torch.Generator().manual_seed(0)
    effects = torch.randn(5, 3, dtype=torch.float64, generator=draw)
    whole = torch.tensor([2.0, -0.5, 0.01, 1.5, -3.0], dtype=torch.float64)
    has = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]]).bool()
    mean, se, kept = mean_share(effects, whole, 0.1, has)
    assert kept.tolist() == [True, True, False, True, True]
    assert se is not None
    for part, pairs in enumerate(([0, 1, 3, 4], [0, 3], [3])):
        share = effects[pairs, part] / whole[pairs]
        assert float(mean[part]) == pytest.approx(float(share.mean()))
        if len(pairs) > 1:
            error = float(share.std()) / len(pairs) ** 0.5 * student(len(pairs))
            assert float(se[part]) == pytest.approx(error)
    assert bool(se[2].isnan())  # one pair has no error


def test_what_does_not_fit_is_refused(net):
    patch = ActivationPatching()
    with pytest.raises(InputError, match=r"one length, got \(2, 5\) and \(2, 4\) tokens"):
        patch.explain(net, A, corrupt={"input_ids": B["input_ids"][:, :4]})
    cache = cache_of(net(**A, use_cache=True))
    with pytest.raises(InputError, match="without a cache"):
        patch.explain(net, {**A, CACHE: cache}, corrupt={**B, CACHE: cache})
    with pytest.raises(SiteError, match="no tensor of numbers"):
        patch.explain(net, A, corrupt=B, site="transformer.h.0.attn:heads.9")
    with pytest.raises(InputError, match="check of at least 0"):
        AttributionPatching(check=-1)
    one, other = ({"input_ids": x["input_ids"][:1]} for x in (A, B))
    with pytest.raises(InputError, match="two pairs or more"):
        ActivationPatching(replace_by="resample").explain(net, one, corrupt=other)
