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
VIEWS = ROWS + 0.3 * torch.randn(8, 5, 6, generator=GENERATOR, dtype=torch.float64)


def likelihood(row, tau):
    scores = [float(normalize(row, dim=0) @ normalize(z, dim=0)) / tau for z in BANK]
    total = sum(map(math.exp, scores))
    return [math.exp(s) / total for s in scores]


def entropy(values):
    mass = [sum(v for v, c in zip(values, OWNER.tolist(), strict=True) if c == k) for k in range(3)]
    return -sum(m / sum(mass) * math.log(m / sum(mass)) for m in mass)


@pytest.mark.truth("a double loop over rows and concepts")
@pytest.mark.parametrize("weighting", ["average", "confidence", "tta"])
def test_posterior_by_loops(weighting):
    tau = 0.5
    kind = ConceptMarginal(tau=tau, weighting=weighting, views=0.25)
    prior = torch.tensor([1.0, 2.0, 3.0])
    found = kind.fit(ROWS, BANK, OWNER, WEIGHTS, prior, VIEWS)
    for i, row in enumerate(ROWS):
        weight = WEIGHTS.tolist()
        if weighting == "confidence":
            weight = [
                w / (entropy(likelihood(z, tau)) + 1e-3) for w, z in zip(weight, BANK, strict=True)
            ]
        elif weighting == "tta":
            views = sorted((likelihood(view[i], tau) for view in VIEWS), key=entropy)[:2]
            weight = [w * (views[0][z] + views[1][z]) / 2 for z, w in enumerate(weight)]
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


@pytest.mark.truth("zero-shot classification, and the bank in another order")
def test_one_concept_each_is_plain_zero_shot():
    plain = (normalize(ROWS) @ normalize(BANK).T / 0.07).softmax(1)
    found = ConceptMarginal().fit(ROWS, BANK, torch.arange(7))
    torch.testing.assert_close(found.value, plain)
    assert torch.equal(found.predicted, plain.argmax(1))
    order = torch.randperm(7, generator=GENERATOR)
    kind = ConceptMarginal(weighting="confidence")
    one, other = (kind.fit(ROWS, BANK[o], OWNER[o]).value for o in (torch.arange(7), order))
    torch.testing.assert_close(one, other)


def test_classes_without_concepts_and_views_that_lack():
    with pytest.raises(InputError, match=r"a concept for every class, got none for \[1\]"):
        ConceptMarginal().fit(ROWS, BANK[:2], torch.tensor([0, 2]))
    with pytest.raises(InputError, match="expected views"):
        ConceptMarginal(weighting="tta").fit(ROWS, BANK, OWNER)
