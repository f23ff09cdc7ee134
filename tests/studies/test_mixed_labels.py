"""Labels that are spread over neighbours and mixed with those of prototypes."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import kneighbors_graph
from sklearn.semi_supervised import LabelSpreading

from sonde_studies._mixed_labels import ALPHA, CLASSES, NEIGHBOURS, WEIGHT, cosines, mixed, spread


@pytest.mark.truth("scikit-learn's label spreading over the same neighbours, and its cosines")
def test_labels_are_spread_and_mixed_with_prototypes():
    draw = torch.Generator().manual_seed(0)
    x, given = torch.randn(60, 7, generator=draw), torch.randint(CLASSES, (60,), generator=draw)
    near = kneighbors_graph(x.numpy(), NEIGHBOURS).toarray()
    graph = np.maximum(near, near.T)
    ours = spread(x, given)
    theirs = LabelSpreading(kernel=lambda a, b: graph, alpha=ALPHA, max_iter=2_000, tol=1e-9)
    theirs.fit(x.numpy(), given.numpy())
    np.testing.assert_allclose(ours[:, theirs.classes_], theirs.label_distributions_, atol=1e-5)

    states = torch.randn(60, 5, generator=draw)
    known = given.clamp(max=7)
    means = np.stack([states[known == c].mean(0).numpy() for c in range(8)])
    want = np.full((60, CLASSES), -1.0)
    want[:, :8] = cosine_similarity(states.numpy(), means)
    np.testing.assert_allclose(cosines(states, known), want, atol=1e-5)
    weight = np.exp(want) / np.exp(want).sum(1, keepdims=True)
    best = ((1 - WEIGHT) * ours.numpy() + WEIGHT * weight).argmax(1)
    assert mixed(ours, states, known).tolist() == best.tolist()
    assert (best != ours.argmax(1).numpy()).any()
