"""Documents of several passages, of which one is asked for word by word."""

import math

import pytest
import torch

from sonde import InputError, load
from sonde_studies.parts.retrieval import bm25, reciprocal_ranks
from sonde_studies.recipes.document_retrieval import document_retrieval

TEXTS = ["the cat sat", "a dog and the cat and the cat", "birds sing at dawn", "the the the dog"]


@pytest.mark.truth("the formula written out term by term")
def test_bm25_is_the_published_sum():
    queries = ["cat dog", "the dawn chorus"]
    split = [t.split() for t in TEXTS]
    mean = sum(map(len, split)) / 4
    for query, row in zip(queries, bm25(TEXTS, queries), strict=True):
        for words, got in zip(split, row, strict=True):
            want = 0.0
            for term in query.split():
                df, tf = sum(term in other for other in split), words.count(term)
                idf = math.log((4 - df + 0.5) / (df + 0.5) + 1)
                if df:
                    want += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(words) / mean))
            assert float(got) == pytest.approx(want)


@pytest.mark.truth("the mean over all orders of equal scores, by hand")
def test_equal_scores_have_the_mean_reciprocal_rank_of_their_orders():
    score = torch.tensor([[3.0, 2, 2, 2, 0], [0, 0, 0, 0, 0], [1, 5, 4, 3, 2]])
    wanted = [(1 / 2 + 1 / 3 + 1 / 4) / 3, sum(1 / k for k in range(1, 6)) / 5, 1 / 5]
    assert reciprocal_ranks(score, torch.tensor([2, 4, 0])).tolist() == pytest.approx(wanted)


@pytest.mark.slow
@pytest.mark.truth("queries that are the second passage of their document")
def test_a_passage_that_is_asked_for_word_by_word_is_found():
    model, draw = load("sonde:stdlib"), torch.Generator().manual_seed(1)
    pieces = [
        "".join(chr(97 + int(c)) for c in torch.randint(0, 26, (256,), generator=draw) % (5 + i))
        for i in range(24)
    ]
    documents = [{"id": f"d{i}", "text": pieces[2 * i] + pieces[2 * i + 1]} for i in range(12)]
    queries = [{"id": f"d{i}", "text": pieces[2 * i + 1]} for i in reversed(range(12))]
    found = document_retrieval(model, documents, queries, top=1, progress=False)
    recall = {row["arm"]: row["recall at 1"] for row in found.rows}
    assert recall["states, best passage"] == 1.0
    assert recall["states, first passage"] < 1.0
    assert found.n == 12


def test_keys_that_lead_nowhere_are_named():
    rows = [{"id": str(i), "text": TEXTS[i % 4]} for i in range(12)]
    queries = [*rows[:11], {"id": "nowhere", "text": "cat"}]
    with pytest.raises(InputError, match=r"1 queries without a document, e.g. \['nowhere'\]"):
        document_retrieval(load("sonde:stdlib"), rows, queries, progress=False)
