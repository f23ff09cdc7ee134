"""Groups in turn: what moves, by hand with the optimiser; one group that is all; bad patterns."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from sonde import InputError, Model
from sonde_studies.recipes.alternating_fields import JOINT, TURNS, alternating_fields


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def rows(n=100):
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(n, 4, generator=draw)
    label = (x[:, :3] + 0.3 * torch.randn(n, 3, generator=draw)).argmax(1)
    return x, label, [{"x": v, "label": int(c)} for v, c in zip(x, label, strict=True)]


@pytest.mark.truth("full-batch Adam on one group after the other, written out")
def test_each_epoch_moves_one_group_and_judges_other_rows():
    x, label, items = rows()
    found = alternating_fields(
        Model(net()), items, groups=("0.*", "2.*"), epochs=4, rate=0.05, batch_size=100, seed=1,
        progress=False,
    )  # fmt: skip
    order = np.random.default_rng(1).permutation(100)
    held, kept = order[:40], order[40:]
    for arm in (JOINT, TURNS):
        own = deepcopy(net())
        for epoch in range(4):
            part = [*own.parameters()] if arm == JOINT else [*own[2 * (epoch % 2)].parameters()]
            optimiser = torch.optim.Adam(part, lr=0.05)
            nn.functional.cross_entropy(own(x[kept]), label[kept]).backward()
            optimiser.step()
            own.zero_grad()
        right = (own(x[held]).argmax(1) == label[held]).double().mean()
        got = [row["accuracy"] for row in found.rows if row["arm"] == arm]
        assert len(got) == 2
        assert got[-1] == pytest.approx(float(right))


@pytest.mark.truth("a single group of all parameters is the joint training")
def test_a_group_of_all_is_no_difference():
    *_, items = rows()
    found = alternating_fields(
        Model(net()), items, groups=("*",), epochs=3, rate=0.05, progress=False
    )
    assert float(found.value) == 0.0
    assert found.verdict == "no difference"


def test_patterns_that_fit_nothing_are_refused():
    *_, items = rows()
    with pytest.raises(InputError, match="got none"):
        alternating_fields(Model(net()), items, groups=("encoder.*", "2.*"), progress=False)
