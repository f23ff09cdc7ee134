"""Classes by their concepts against correlations by numpy."""

import numpy as np
import pytest
import torch

from sonde.core import InputError, ShapeError
from sonde.explain import ConceptMatrixSearch

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.truth("numpy's correlation of standardised rows")
def test_similarity_is_the_correlation_with_each_class():
    label = torch.arange(60) % 3
    rows = torch.randn(60, 5, generator=GENERATOR, dtype=torch.float64) + label[:, None]
    found = ConceptMatrixSearch().fit(rows, label=label * 2)
    means = np.stack([rows[label == k].mean(0).numpy() for k in range(3)])
    shift, scale = means.mean(0), means.std(0)
    for row in rows[:4]:
        want = [
            np.corrcoef((row.numpy() - shift) / scale, (mean - shift) / scale)[0, 1]
            for mean in means
        ]
        similar = found.similarity(row[None])[0]
        np.testing.assert_allclose(similar.numpy(), want, atol=1e-9)
        assert int(found.classify(row[None])) == 2 * int(np.argmax(want))
        assert float(found.parts(row[None]).sum()) == pytest.approx(sum(want))


@pytest.mark.truth("planted one-hot concepts")
def test_planted_concepts_are_found_and_few_decide():
    matrix = torch.zeros(4, 12)
    matrix[torch.arange(4), torch.arange(4)] = 1.0
    label = torch.randint(4, (80,), generator=GENERATOR)
    rows = matrix[label] + 0.1 * torch.rand(80, 12, generator=GENERATOR)
    found = ConceptMatrixSearch(measure="cosine").of(matrix)
    assert torch.equal(found.classify(rows), label)
    few = found.concepts_per_decision(matrix)
    assert bool((few <= 4).all())  # concepts that no class differs in say nothing
    with pytest.raises(ShapeError, match="scores of 12 concepts, got 3"):
        found.classify(rows[:, :3])
    with pytest.raises(InputError, match="at least two classes, got 0"):
        ConceptMatrixSearch().fit(rows)
