"""Best matches of windows, and the passages and windows of a text."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from sonde import gather, load, read
from sonde_studies._late_interaction import (
    Windows,
    best_matches,
    passages_and_windows,
    reranked,
    trained_reranker,
)


def _drawn(sizes: list[int], seed: int, dim: int = 5) -> Windows:
    draw = torch.Generator().manual_seed(seed)
    item = torch.tensor([i for i, n in enumerate(sizes) for _ in range(n)])
    return Windows(torch.randn(len(item), dim, generator=draw).double(), item)


@pytest.mark.truth("loops over windows with cosines of torch")
def test_a_score_is_the_mean_of_the_best_matches():
    documents, queries = _drawn([3, 1, 4], 0), _drawn([2, 3], 1)
    found = best_matches(documents.states, queries.states, documents.item, queries.item)
    for q in range(2):
        for d in range(3):
            best = [
                max(
                    float(cosine_similarity(x, y, 0)) for y in documents.states[documents.item == d]
                )
                for x in queries.states[queries.item == q]
            ]
            assert float(found[q, d]) == pytest.approx(sum(best) / len(best))


@pytest.mark.truth("sorted tuples")
def test_only_the_first_are_reordered():
    draw = torch.Generator().manual_seed(2)
    first, second = torch.rand(3, 9, generator=draw), torch.rand(3, 9, generator=draw)
    order = reranked(first, second, 4).argsort(1, descending=True)
    for row in range(3):
        before = sorted(range(9), key=lambda d: -float(first[row, d]))
        top = sorted(before[:4], key=lambda d: -float(second[row, d]))
        assert order[row].tolist() == top + before[4:]


def test_a_reranker_learns_which_directions_tell_documents():
    documents = _drawn([6] * 12, 3, 8)
    kept = torch.arange(72) % 6 == 0
    noise = _drawn([1] * 12, 4, 8).states
    queries = Windows(documents.states[kept].clone(), documents.item[kept])
    queries.states[:, 4:] = 3 * noise[:, 4:]
    answer = torch.arange(12)
    before = trained_reranker(documents, queries, answer, steps=0)(documents, queries)
    after = trained_reranker(documents, queries, answer, steps=200)(documents, queries)
    assert (after.argmax(1) == answer).sum() > (before.argmax(1) == answer).sum()


@pytest.mark.slow
@pytest.mark.truth("sonde.gather with the mean as reducer")
def test_passages_are_those_that_gather_reads():
    model = load("sonde:stdlib")
    texts = ["import os\n" * 40, "def f(x):\n    return x\n" * 3]
    means, windows = passages_and_windows(model, texts)
    rows = [{"text": text} for text in texts]
    wanted = gather(read(model, rows, text_column="text", reducer="mean"), progress=False)
    assert torch.equal(means.item, wanted.item)
    assert wanted.length is not None
    assert torch.equal(means.length, wanted.length)
    torch.testing.assert_close(means.pooled(wanted.last), wanted.pooled(wanted.last))
    torch.testing.assert_close(means.last, wanted.last, rtol=1e-4, atol=1e-5)
    counts = [sum(-(-int(n) // 16) for n in means.length[means.item == i]) for i in (0, 1)]
    assert windows.item.bincount().tolist() == counts
