"""Cosines to anchors: a loop over rows, the error over draws, and what is refused."""

import numpy as np
import pytest
import torch

from sonde.core import InputError
from sonde.measure import anchor_shift


def _drawn(n, seed, near=1.0):
    draw = torch.Generator().manual_seed(seed)
    concepts, contexts = torch.randn(3, 5, generator=draw), torch.randn(4, 5, generator=draw)
    concept, context = (torch.randint(k, (n,), generator=draw) for k in (3, 4))
    noise = torch.randn(n, 5, generator=draw)
    return (
        near * contexts[context] + concepts[concept] + noise,
        concept,
        context,
        concepts,
        contexts,
    )


@pytest.mark.truth("a loop over rows in numpy")
def test_means_of_cosines():
    x, concept, context, concepts, contexts = _drawn(17, 1)

    def cosine(a, b):
        a, b = a.double().numpy(), b.double().numpy()
        return a @ b / np.sqrt((a @ a) * (b @ b))

    each, null = [], []
    for row, k, c in zip(x, concept.tolist(), context.tolist(), strict=True):
        to_concept = cosine(row, concepts[k])
        each.append(cosine(row, contexts[c]) - to_concept)
        others = [cosine(row, contexts[j]) for j in range(4) if j != c]
        null.append(np.mean(others) - to_concept)
    found = anchor_shift(x, concept, context.tolist(), concepts, contexts)
    assert found.value == pytest.approx(np.mean(each))
    assert found.null == pytest.approx(np.mean(null))
    assert found.se == pytest.approx(np.std(each, ddof=1) / np.sqrt(17))
    assert found.value == pytest.approx(found.to_context - found.to_concept)
    turned = anchor_shift(3 * x, concept, context, concepts, 2 * contexts)
    assert turned.value == pytest.approx(found.value)
    moved = anchor_shift(*_drawn(40, 2, near=3.0)).since(found)
    assert moved.value > 2 * moved.se


@pytest.mark.truth("the same figure of one row of each person")
def test_copies_of_a_person_do_not_narrow_the_error():
    x, concept, context, concepts, contexts = _drawn(60, 3)
    alone = anchor_shift(x, concept, context, concepts, contexts, group=range(60))
    person = torch.arange(60).repeat(5)
    copied = anchor_shift(
        x.repeat(5, 1), concept.repeat(5), context.repeat(5), concepts, contexts, group=person
    )
    assert (copied.value, copied.se) == (pytest.approx(alone.value), pytest.approx(alone.se))
    assert (
        "few_groups"
        in anchor_shift(x, concept, context, concepts, contexts, group=torch.arange(60) % 5).flags
    )
    x[7, 2] = torch.nan
    with pytest.raises(InputError, match="finite rows, got another in row 7"):
        anchor_shift(x, concept, context, concepts, contexts)


@pytest.mark.parametrize(
    ("change", "said"),
    [({1: [0, 3]}, "concepts from 0 to 2"), ({4: torch.ones(1, 5)}, "two contexts or more")],
)
def test_what_is_refused(change, said):
    given = list(_drawn(2, 3))
    for i, value in change.items():
        given[i] = value
    with pytest.raises(InputError, match=said):
        anchor_shift(*given)
