"""The posterior over classes against a double loop over rows and concepts."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from sonde.core import InputError, ShapeError
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


@pytest.mark.truth("a loop over rows, views, classes and concepts")
@pytest.mark.parametrize("n_views", [0, 1, 3])
def test_confidence_and_views_by_loops(n_views):
    tau, prior = 0.4, torch.tensor([1.0, 2.0, 3.0])
    views = torch.randn(5, n_views, 6, generator=GENERATOR, dtype=torch.float64)
    given = views if n_views else None
    found = {
        kind: ConceptMarginal(tau, kind).fit(ROWS, BANK, OWNER, WEIGHTS, prior, given)
        for kind in ("mixture", "confidence")
    }
    for i, row in enumerate(ROWS):
        each = [likelihood(x, tau) for x in (row, *views[i])]
        own = [sum(v) / len(each) for v in zip(*each, strict=True)]
        mass = {kind: [] for kind in found}
        for k in range(3):
            members = [z for z in range(7) if int(OWNER[z]) == k]
            weigh = {z: float(WEIGHTS[z]) * own[z] for z in members}
            mass["mixture"].append(
                float(prior[k]) * sum(weigh.values()) / sum(float(WEIGHTS[z]) for z in members)
            )
            score = 0.0
            for z in members:
                share = weigh[z] / sum(weigh.values())
                score += share * float(normalize(row, dim=0) @ normalize(BANK[z], dim=0)) / tau
                assert float(found["confidence"].responsibility[i, z]) == pytest.approx(share)
            mass["confidence"].append(float(prior[k]) * math.exp(score))
        for kind, values in mass.items():
            want = torch.tensor(values, dtype=torch.float64) / sum(values)
            torch.testing.assert_close(found[kind].value[i], want)


@pytest.mark.truth("the weighted mean of the concepts, of one length")
def test_average_is_zero_shot_with_the_mean_concept():
    tau = 0.3
    unit = normalize(BANK)
    own = [(k == OWNER).to(unit) * WEIGHTS for k in range(3)]
    mean = torch.stack([w @ unit / w.sum() for w in own])
    found = ConceptMarginal(tau, "average").fit(ROWS, BANK, OWNER, WEIGHTS)
    torch.testing.assert_close(found.value, (normalize(ROWS) @ mean.T / tau).softmax(1))
    assert found.conventions["likelihood"] == "average"
    with pytest.raises(InputError, match="no views for likelihood='average', got 2"):
        ConceptMarginal(tau, "average").fit(ROWS, BANK, OWNER, views=ROWS[:, None].expand(-1, 2, 6))
    with pytest.raises(ShapeError, match=r"views \(row view dim\) of the rows \(5, 6\)"):
        ConceptMarginal().fit(ROWS, BANK, OWNER, views=ROWS[:4, None])


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
