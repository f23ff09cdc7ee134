"""Bottlenecks over planted one-hot concepts."""

import pytest
import torch

from sonde.core import InputError, ShapeError
from sonde.explain import ConceptBottleneck

DRAW = torch.Generator().manual_seed(0)
BANK = torch.eye(8)
OWN = torch.randint(6, (240,), generator=DRAW)
ROWS = 3 * BANK[OWN] + 0.2 * torch.randn(240, 8, generator=DRAW)
LABEL = OWN // 2


@pytest.mark.truth("planted one-hot concepts, two of each class")
@pytest.mark.parametrize("loss", ["l1", "contrastive", "gumbel"])
def test_planted_concepts_carry_the_classes(loss):
    found = ConceptBottleneck(loss, steps=150).fit(ROWS, BANK, LABEL)
    assert found.value == 1.0
    assert float(torch.as_tensor(found.null)) < 0.5
    assert torch.equal(found.classify(ROWS), LABEL)
    owned = found.weight[LABEL, OWN] - found.weight[(LABEL + 1) % 3, OWN]
    assert (owned > 0).all()


@pytest.mark.truth("a hard draw names the nearest concept and no other")
def test_gumbel_says_one_concept_of_each_row():
    found = ConceptBottleneck("gumbel", steps=150).fit(ROWS, BANK, LABEL)
    said = found.concepts(ROWS)
    assert said.sum(1).eq(1).all()
    assert torch.equal(said.argmax(1), OWN)
    assert found.per_decision == 1.0
    dense = ConceptBottleneck("contrastive", steps=150).fit(ROWS, BANK, LABEL)
    assert dense.per_decision > 1.0


@pytest.mark.truth("a price above every gradient: all weights are 0")
def test_a_large_price_leaves_no_concept():
    found = ConceptBottleneck("l1", l1=100.0, steps=20).fit(ROWS, BANK, LABEL)
    assert not found.weight.any()
    assert found.per_decision == 0.0
    assert found.value == found.null


@pytest.mark.truth("planted one-hot concepts, three of each class")
def test_two_classes_are_enough():
    found = ConceptBottleneck(steps=60).fit(ROWS, BANK, OWN // 3)
    assert found.value == 1.0
    assert found.labels.tolist() == [0, 1]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="one width"):
        ConceptBottleneck().fit(ROWS, BANK[:, :3], LABEL)
    with pytest.raises(InputError, match="got 1 label of"):
        ConceptBottleneck().fit(ROWS, BANK, torch.zeros(240, dtype=torch.int64))
    with pytest.raises(InputError, match="got 240 labels"):
        ConceptBottleneck().fit(ROWS, BANK, torch.arange(240))
