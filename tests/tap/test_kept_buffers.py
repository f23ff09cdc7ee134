"""Forward passes that sonde runs itself move no buffer of a model, whatever its author wrote."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sonde.compress
import sonde.explain
from sonde.core import Model, SondeError, SondeWarning
from sonde.explain import (
    Attributor,
    Baseline,
    ClassSensitivity,
    Deletion,
    Infidelity,
    IntegratedGradients,
    SanityChecks,
    SensitivityN,
)
from sonde.tap.hooks import kept_buffers
from sonde.tap.hooks.holding import in_eval
from sonde.tap.hooks.kept_buffers import KeptBuffers
from sonde.testing.rewrite_laws import examples_for, small_net
from sonde.weights import Rewrite

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ZERO = Baseline("zero")
GIVEN = {"baseline": ZERO, "n_orders": 1, "n": 2, "steps": 3, "references": torch.zeros(2, 1, 8, 8)}


class Moving(nn.Module):
    """Counts its calls, keeps a running mean, and uses both in its answer."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.register_buffer("count", torch.ones(()))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return self.net(x) / self.count.sqrt() + self.mean


def kinds(room: Any, base: type) -> list[Any]:
    """Return a method of each class of a room."""
    every = [getattr(room, name) for name in room.__all__]
    found = [k for k in every if isinstance(k, type) and issubclass(k, base) and k is not base]
    return [k(**{f.name: GIVEN[f.name] for f in dataclasses.fields(k) if f.name in GIVEN})
            if base is Attributor else k(**k.examples[0]) for k in found]  # fmt: skip


EXPLAIN = [(m, lambda m, net: m.explain(net, X)) for m in kinds(sonde.explain, Attributor)]
COMPRESS = [
    (m, lambda m, net: m.plan(Model(net), examples_for(m, Model(net))))
    for m in kinds(sonde.compress, Rewrite)
]
OWN = IntegratedGradients(steps=3, baseline=ZERO)
JUDGES: list[Any] = [
    (j, lambda j, net: j.judge(net, X, OWN.explain(net, X)))
    for j in (Deletion(ZERO, 2, steps=3), SensitivityN(ZERO, 3), Infidelity(ZERO, 3))
] + [(j, lambda j, net: j.judge(net, X, OWN)) for j in (SanityChecks(), ClassSensitivity())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("method", "act"), [*EXPLAIN, *COMPRESS, *JUDGES], ids=lambda m: type(m).__name__
)
@pytest.mark.truth("the model's own state before")
def test_no_command_moves_a_buffer(method: Any, act: Any):
    net = Moving().eval()
    state, own = {k: v.clone() for k, v in net.state_dict().items()}, net.count
    try:
        act(method, net)
    except SondeError as error:
        print(error)
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    assert net.count is own


def test_the_users_own_forwards_move_buffers_and_shared_ones_stay_shared():
    net = Moving().eval()
    net.net.register_buffer("same", net.count)
    with in_eval(net):
        assert net.net.same is net.count
        net(X)
    assert net.net.same is net.count
    assert float(net.count) == 1.0
    with sonde.Tap(net, "net.11"):
        net(X)
    assert float(net.count) == 2.0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_blocks_that_overlap_put_back_the_own_buffer(order):
    net = Moving().eval()
    own, mean = net.count, net.mean
    blocks = [KeptBuffers(net.modules())]
    net(X)
    blocks.append(KeptBuffers(net.modules()))
    net(X)
    assert (float(net.count), net.count is own) == (3.0, False)
    blocks[order[0]].restore()
    assert float(net.count) == (3.0 if order[0] == 0 else 2.0)  # a block inside one is undone
    blocks[order[1]].restore()
    assert (net.count is own, net.mean is mean, float(own)) == (True, True, 1.0)
    assert kept_buffers._open == {}


def test_a_cache_that_grew_stays_and_a_large_buffer_that_moved_is_said(monkeypatch):
    net = nn.Module()
    net.register_buffer("cache", torch.zeros(2), persistent=False)
    net.register_buffer("large", torch.zeros(9))
    monkeypatch.setattr(kept_buffers, "LARGEST", 5)
    kept = KeptBuffers(net.modules())
    net.cache = torch.ones(4)
    net.get_buffer("large").add_(1)
    with pytest.warns(SondeWarning, match="the buffer large"):
        kept.restore()
    assert len(net.get_buffer("cache")) == 4
