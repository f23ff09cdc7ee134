"""The posterior over classes against a double loop over rows and concepts."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from sonde.core import InputError
from sonde.explain import ConceptMarginal

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(5, 6, generator=GENERATOR, dtype=torch.float64)
BANK = torch.randn(7, 6, generator=GENERATOR, dtype=torch.float64)
OWNER = torch.tensor([0, 1, 2, 0, 1, 0, 2])
WEIGHTS = torch.rand(7, generator=GENERATOR, dtype=torch.float64)


def likelihood(row, tau):
    scores = [float(normalize(row, dim=0) @ normalize(z, dim=0)) / tau for z in BANK]
    total = sum(map(math.exp, scores))
    return [math.exp(s) / total for s in scores]


@pytest.mark.truth("a double loop over rows and concepts")
def test_posterior_by_loops():
    tau = 0.5
    kind = ConceptMarginal(tau=tau)
    prior = torch.tensor([1.0, 2.0, 3.0])
    found = kind.fit(ROWS, BANK, OWNER, WEIGHTS, prior)
    for i, row in enumerate(ROWS):
        weight = WEIGHTS.tolist()
        own = likelihood(row, tau)
        mass = []
        for k in range(3):
            members = [z for z in range(7) if int(OWNER[z]) == k]
            total = sum(weight[z] for z in members)
            terms = {z: weight[z] / total * own[z] for z in members}
            mass.append(float(prior[k]) * sum(terms.values()))
            for z in members:
                want = terms[z] / sum(terms.values())
                assert float(found.responsibility[i, z]) == pytest.approx(want)
        want = torch.tensor(mass, dtype=torch.float64) / sum(mass)
        torch.testing.assert_close(found.value[i], want)
    assert found.range == (0.0, 1.0)


@pytest.mark.truth("zero-shot classification, and the bank in another order")
def test_one_concept_each_is_plain_zero_shot():
    plain = (normalize(ROWS) @ normalize(BANK).T / 0.07).softmax(1)
    found = ConceptMarginal().fit(ROWS, BANK, torch.arange(7))
    torch.testing.assert_close(found.value, plain)
    assert torch.equal(found.predicted, plain.argmax(1))
    order = torch.randperm(7, generator=GENERATOR)
    kind = ConceptMarginal(0.2)
    one, other = (kind.fit(ROWS, BANK[o], OWNER[o]).value for o in (torch.arange(7), order))
    torch.testing.assert_close(one, other)


def test_classes_without_concepts_are_refused():
    with pytest.raises(InputError, match=r"a concept for every class, got none for \[1\]"):
        ConceptMarginal().fit(ROWS, BANK[:2], torch.tensor([0, 2]))
    with pytest.raises(InputError, match="tau above 0"):
        ConceptMarginal(tau=0.0)
