"""A model that is a small tree among many inputs: its inputs and its answers come back."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.explain import SurrogateRules

USED = (17, 80, 151)


def rows(n=3000, seed=0):
    return torch.randn(n, 200, generator=torch.Generator().manual_seed(seed))


class Tree(nn.Module):
    """Three levels over three of two hundred inputs."""

    def answer(self, x):
        a, b, c = (x[:, i] for i in USED)
        right = torch.where(b > 0.2, 2, torch.where(c > -0.5, 1, 3))
        return torch.where(a > 0.1, right, torch.where(c > 0.4, 1, 0))

    def forward(self, x):
        return 20 * nn.functional.one_hot(self.answer(x), 4).float()


@pytest.fixture(scope="module")
def found():
    return SurrogateRules(k=3, depth=5).explain(Tree(), rows())


@pytest.mark.truth("the model is a tree of three levels over three of two hundred inputs")
def test_the_tree_is_found_among_many_inputs(found):
    assert sorted(found.features.tolist()) == list(USED)
    assert found.value > 0.98
    assert found.value > float(torch.as_tensor(found.null)) + 0.3
    assert sum(rule.coverage for rule in found.rules) == pytest.approx(1.0)
    bars = sorted({round(b, 1) for r in found.rules for p in r.bounds.values() for b in p})
    assert {0.1, 0.2, 0.4, -0.5} <= set(bars)


@pytest.mark.truth("each rule asked of new rows in plain comparisons")
def test_a_rule_says_what_holds_where_it_holds(found):
    x = rows(2000, seed=5)
    said = Tree().answer(x)
    taken = torch.zeros(len(x), dtype=torch.int64)
    for rule in found.rules:
        mine = torch.ones(len(x), dtype=torch.bool)
        for i, (low, high) in rule.bounds.items():
            mine &= (x[:, i] > low) & (x[:, i] <= high)
        taken += mine
        assert float(mine.double().mean()) == pytest.approx(rule.coverage, abs=0.05)
        if mine.any():
            right = float((said[mine] == rule.answer).double().mean())
            assert right == pytest.approx(rule.precision, abs=0.05)
    assert taken.eq(1).all()
    assert all("->" in str(rule) and "x[" in str(rule) for rule in found.rules)


def test_numbers_and_what_cannot_be_imitated():
    x = rows(800)
    found = SurrogateRules(k=1, depth=6).explain(lambda x: 3.0 * x[:, 40], x)
    assert found.features.tolist() == [40]
    assert 0.95 < found.value < 1.0
    assert (found.null, found.se) == (0.0, None)
    with pytest.raises(InputError, match="the same answer for all"):
        SurrogateRules().explain(lambda x: torch.zeros(len(x), 2), x)
    with pytest.raises(InputError, match="20 rows"):
        SurrogateRules().explain(Tree(), x[:5])
    with pytest.raises(InputError, match="depth of at least 1"):
        SurrogateRules(depth=0)
