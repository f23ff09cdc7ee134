"""The graph of a net that was written by hand: exclusive or of two of four bits, with decoys."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuits import linear
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
    found = find.find(exclusive_or(), ODD, LAYERS, 1)
    assert dict(zip(found.edges, found.value.tolist(), strict=True)) == {
        (("2", 0), ("class", 1)): 4.0,
        (("0", 0), ("2", 0)): 2.0,  # in half of the rows
        (("0", 1), ("2", 0)): 2.0,
    }
    assert (found.necessity, found.sufficiency) == (0.0, 1.0)
    assert bool(found.screened) == (screen > 0)
    halves = [find.find(exclusive_or(), part, LAYERS, 1) for part in (ODD[:3], ODD[3:])]
    torch.testing.assert_close(halves[0].sums + halves[1].sums, found.sums)
    torch.testing.assert_close(halves[0].squares + halves[1].squares, found.squares)


def test_redundant_units_hide_one_another_unless_they_go_together():
    net = exclusive_or(copies=2)
    alone = CausalGraph(threshold=0.1, baseline="zero").find(net, ODD, LAYERS, 1)
    assert alone.units == {("2", 0)}
    both = CausalGraph(threshold=0.1, baseline="zero", together=True).find(net, ODD, LAYERS, 1)
    assert both.units == {("2", 0), ("0", 0), ("0", 1), ("0", 2), ("0", 3)}


def test_layers_that_do_not_follow_are_refused():
    with pytest.raises(SiteError, match="expected two linear layers or more"):
        CausalGraph().find(exclusive_or(), ODD, ["0", "1"], 1)
    with pytest.raises(SiteError, match="follow one another"):
        CausalGraph().find(exclusive_or(), ODD, ["0", "4"], 1)
    with pytest.raises(InputError, match="quantile"):
        CausalGraph(quantile=1.0)
