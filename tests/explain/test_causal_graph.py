"""The graph of a net that was written by hand: exclusive or of two of four bits, with decoys."""

from typing import Any

import pytest
import torch
from tests.student import student
from torch import Tensor, nn

from circuits import linear
from narrow import present
from sonde.core import InputError, SiteError
from sonde.explain import CausalGraph

LAYERS = ["0", "2", "4"]
BITS = torch.tensor([[(i >> k) & 1 for k in range(4)] for i in range(16)]).double()
ODD = BITS[BITS[:, 0] != BITS[:, 1]]


class AtMostOne(nn.Module):
    """Clips to [0, 1]: one of two equal units is enough."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)


def exclusive_or(copies: int = 1) -> Any:
    """Return ``4 (relu(a - b) + relu(b - a))`` against 2, beside units of c and d.

    Unit 1 of the second layer hears four decoys and is heard by nobody.
    """
    parts = torch.tensor([[1.0, -1, 0, 0], [-1, 1, 0, 0]]).repeat(copies, 1)
    decoys = torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 1], [0, 0, 1, -1], [0, 0, -1, 1]])
    hidden = torch.zeros(2, len(parts) + 4)
    hidden[0, : len(parts)], hidden[1, len(parts) :] = 1.0, 1.0
    head = linear(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    head.bias = nn.Parameter(torch.tensor([2.0, 0.0]).double())
    first = linear(torch.cat([parts, decoys]))
    return nn.Sequential(first, nn.ReLU(), linear(hidden), AtMostOne(), head)


@pytest.mark.truth("the edges of a net that was written by hand, and their effects")
@pytest.mark.parametrize("screen", [0.0, 0.5])
def test_the_graph_has_exactly_the_true_edges(screen):
    find = CausalGraph(threshold=0.1, baseline="zero", screen=screen)
    found = find.explain(exclusive_or(), ODD, site=LAYERS, target=1)
    assert dict(zip(found.edges, found.value.tolist(), strict=True)) == {
        (("2", 0), ("class", 1)): 4.0,
        (("0", 0), ("2", 0)): 2.0,  # in half of the rows
        (("0", 1), ("2", 0)): 2.0,
    }
    # Effects of 4 in four rows and of 0 in the four others have a variance of 32 / 7.
    errors = sorted(present(found.se).tolist())
    want = (4 / 7) ** 0.5 * student(8)
    assert errors == pytest.approx([0.0, want, want])
    assert (found.necessity, found.sufficiency) == (0.0, 1.0)
    assert bool(found.screened) == (screen > 0)
    halves = [
        find.explain(exclusive_or(), part, site=LAYERS, target=1) for part in (ODD[:3], ODD[3:])
    ]
    torch.testing.assert_close(halves[0].sums + halves[1].sums, found.sums)
    torch.testing.assert_close(halves[0].squares + halves[1].squares, found.squares)


@pytest.mark.truth("units of each layer drawn without replacement, counted")
def test_random_units_are_as_many_of_each_layer_as_the_graph_has():
    net, found = exclusive_or(), list[float]()
    for seed in range(24):
        find = CausalGraph(threshold=0.1, baseline="zero", seed=seed)
        found.append(find.explain(net, ODD, site=LAYERS, target=1).random_necessity)
    # One of two units of the second layer, and two of six of the first; only unit 0 of the second
    # and units 0 and 1 of the first count: all rows keep the class with chance 1/2 * 6/15, half of
    # them with chance 1/2 * 8/15.
    assert set(found) == {0.0, 0.5, 1.0}
    assert sum(found) / 24 == pytest.approx(1 / 3, abs=3 * (0.156 / 24) ** 0.5)


def test_redundant_units_hide_one_another_unless_they_go_together():
    net = exclusive_or(copies=2)
    alone = CausalGraph(threshold=0.1, baseline="zero").explain(net, ODD, site=LAYERS, target=1)
    assert alone.units == {("2", 0)}
    both = CausalGraph(threshold=0.1, baseline="zero", together=True).explain(
        net, ODD, site=LAYERS, target=1
    )
    assert both.units == {("2", 0), ("0", 0), ("0", 1), ("0", 2), ("0", 3)}


@pytest.mark.truth("three classes that each hang on one unit of their own: products of the weights")
def test_the_default_baseline_loses_a_class_without_its_units():
    head = linear(torch.eye(3).repeat(1, 2) * torch.tensor([3.0, 2.0, 4.0, -0.1, -0.2, -0.1]))
    head.bias = nn.Parameter(torch.tensor([0.1, 0.3, 0.2]).double())
    net = nn.Sequential(linear(torch.eye(3).repeat(2, 1)), nn.ReLU(), head)
    source = torch.Generator().manual_seed(0)
    kind = torch.arange(60) % 3
    x = torch.nn.functional.one_hot(kind, 3) * (1 + torch.rand(60, 3, generator=source).double())
    for c in range(3):
        rows = x[kind == c]
        found = CausalGraph(threshold=0.5).explain(net, rows, site=["0", "2"], target=c)
        assert found.units == {("0", c)}
        assert found.necessity < 0.5 < found.sufficiency
        how = CausalGraph(threshold=0.5, baseline="mean")
        other = how.explain(net, rows, site=["0", "2"], target=c, reference=x)
        want = float(head.weight.detach()[c, c]) * (rows[:, c] - x[:, c].mean()).mean()
        assert float(other.value[0]) == pytest.approx(float(want))


class Around(nn.Module):
    """Two convolutions with a norm between and a way around the second, then maps laid flat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.two, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Linear(4 * 9, 3)
        self.norm.running_mean = torch.randn(4)
        self.double().eval()

    def forward(self, x: Tensor, cut: Any = None) -> Tensor:
        """Return logits; ``cut`` is a message, (child, parent, layer), that is left out."""
        a = self.norm(self.one(x)).tanh()
        b = self.two(a)
        child, parent, layer = cut or (0, 0, "")
        if layer == "two":
            b[:, child] -= nn.functional.conv2d(
                a[:, parent : parent + 1], self.two.weight[child, parent % 2][None, None], padding=1
            )[:, 0]
        b = a + b.relu()
        z = self.head(b.flatten(1))
        if layer == "head":
            z[:, child] -= torch.einsum(
                "nhw,hw->n", b[:, parent], self.head.weight[child].reshape(4, 3, 3)[parent]
            )
        return z


@pytest.mark.truth("the net run with each kernel's product taken away by hand")
def test_messages_between_channels_are_taken_away_past_norms_and_ways_around():
    net = Around()
    x = torch.randn(5, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()
    find = CausalGraph(threshold=0.0)
    found = find.explain(net, x, site=["one", "two", "head"], target=2)
    got = dict(zip(found.edges, found.value.tolist(), strict=True))
    with torch.no_grad():
        whole = net(x)[:, 2]
        for parent in range(4):
            want = float((whole - net(x, (2, parent, "head"))[:, 2]).mean())
            assert got[("two", parent), ("class", 2)] == pytest.approx(want, abs=1e-9)
            child = (parent + 1) % 2 + 2 * (parent // 2)  # of the same group
            want = float((whole - net(x, (child, parent, "two"))[:, 2]).mean())
            assert got.get((("one", parent), ("two", child)), 0.0) == pytest.approx(want, abs=1e-9)
    assert not any(p[1] // 2 != c[1] // 2 for p, c in found.edges if p[0] == "one")


def test_layers_that_do_not_follow_are_refused():
    with pytest.raises(SiteError, match="sums over units, linear or convolutional, got 1, a ReLU"):
        CausalGraph().explain(exclusive_or(), ODD, site=["0", "1"], target=1)
    with pytest.raises(SiteError, match="two layers or more"):
        CausalGraph().explain(exclusive_or(), ODD, site=["0"], target=1)
    with pytest.raises(InputError, match="expected reference inputs with baseline='mean'"):
        CausalGraph(baseline="mean").explain(exclusive_or(), ODD, site=LAYERS, target=1)
    with pytest.raises(SiteError, match="Name successive layers"):
        CausalGraph().explain(exclusive_or(), ODD, site=["0", "4"], target=1)
    with pytest.raises(InputError, match="quantile"):
        CausalGraph(quantile=1.0)
