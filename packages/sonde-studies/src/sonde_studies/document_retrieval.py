"""Test whether merged passage states find a document better than its first passage.

Modules of the standard library and a byte-level language model of 3 million parameters, which was
never trained for retrieval: the study compares ways to use its states, and says how far they are
behind counting words. Only the reranker is trained, on other modules.
"""

from typing import final

import numpy as np
import torch
from torch import Tensor

from sonde import load
from sonde.data import open_inputs
from sonde_studies._late_interaction import (
    Reranker,
    passages_and_windows,
    reranked,
    trained_reranker,
)
from sonde_studies.arms import note_for
from sonde_studies.parts.retrieval import bm25, fused, passage_scores, places
from sonde_studies.study import Claim, Figures, Study, Tick

DOCUMENTS, TINY, BYTES, QUERY = 60, 14, 1280, 240
KNOWN, PIECES, TOP, FIRST = 40, 2, 5, 15
"""Modules that the reranker learns from, and queries for each; documents counted, and reranked."""
MERGED = "states, mean of passages"


@final
class DocumentRetrievalStudy(Study):
    """Modules as documents, and a later piece of a module as the query."""

    name = "document-retrieval"
    title = "do merged states of passages find a document better than its first passage?"
    paper = "lee2024interleaved"
    fidelity = (
        "the mean of passages as published, without the training of the encoder; the reranker is "
        "late interaction over windows of 16 bytes with a trained projection, where the paper "
        "trains a model on query and passage; BM25 with the usual constants"
    )
    data = (
        "60 modules of the standard library, 1,280 bytes each; queries: 240 later bytes of each; "
        "40 other modules to train the reranker"
    )
    place = "byte-model"
    claims = (
        Claim(
            "merged",
            "The mean of all passages, which takes as many passes, finds more than the first "
            "passage alone.",
            "recall at 5, mean of passages less first passage",
            arms=("states, mean of passages", "states, first passage"),
        ),
        Claim(
            "states",
            "States find more than chance.",
            "recall at 5 of the mean of passages less chance",
        ),
        Claim(
            "both",
            "States, which cost passes of a model, and BM25 together find more than BM25.",
            "recall at 5, both less BM25",
            arms=("BM25 and states", "BM25"),
        ),
        Claim(
            "reranked",
            "Late interaction that was trained on other modules orders the first 15 better.",
            "recall at 5, reranked less mean of passages",
            arms=("reranked", "not reranked"),
        ),
    )
    null = Claim(
        "permuted",
        "With the queries handed to other documents, states find what chance finds.",
        "recall at 5 of the mean of passages, less chance",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Sample modules, train a reranker on some, and rank the others in all ways."""
        tick("read")
        model, n = load("sonde:stdlib"), TINY if tiny else DOCUMENTS
        draw = np.random.default_rng(seed)
        source = open_inputs(model, "sonde:stdlib/train-all").source
        texts = [row["text"] for row in source.rows() if len(row["text"]) > 4 * BYTES]
        chosen = [texts[int(i)] for i in draw.permutation(len(texts))[: n + (n if tiny else KNOWN)]]
        documents = [t[BYTES : 2 * BYTES] for t in chosen]
        later = [t[3 * BYTES + i * QUERY :][:QUERY] for t in chosen[n:] for i in range(PIECES)]
        queries = [t[3 * BYTES :][:QUERY] for t in chosen[:n]]
        (passages, windows), (asked, pieces), (_, known), (_, learned) = (
            passages_and_windows(model, part)
            for part in (documents[:n], queries, documents[n:], later)
        )
        tick("reranked")
        answer = torch.arange(n)
        reranker = trained_reranker(
            known, learned, torch.arange(len(chosen) - n).repeat_interleave(PIECES)
        )
        score = passage_scores(passages, asked)
        many = len(passages.last)
        for name, n_passes in (("BM25", 0), ("BM25 and states", many), (MERGED, many)):
            note_for(name, passes=n_passes)
        note_for("states, first passage", passes=n)
        note_for("not reranked", updates=0)
        score["BM25"] = bm25(documents[:n], queries)
        score["BM25 and states"] = fused(score["BM25"], score[MERGED])
        with torch.no_grad():
            again = {
                "reranked": reranker(windows, pieces),
                "reranked, not trained": Reranker(known)(windows, pieces),
            }
        score |= {arm: reranked(score[MERGED], x, FIRST) for arm, x in again.items()}
        recall = {arm: _recall(x, answer) for arm, x in score.items()}
        other = (answer + int(draw.integers(1, n))) % n
        return {
            "merged": recall[MERGED] - recall["states, first passage"],
            "states": recall[MERGED] - TOP / n,
            "both": recall["BM25 and states"] - recall["BM25"],
            "reranked": recall["reranked"] - recall[MERGED],
            "permuted": _recall(score[MERGED], other) - TOP / n,
            f"recall at {FIRST}, {MERGED}": _recall(score[MERGED], answer, FIRST),
            **{f"recall at {TOP} | {arm}": value for arm, value in recall.items()},
        }


def _recall(score: Tensor, answer: Tensor, top: int = TOP) -> float:
    """Return the fraction of queries whose document is among the first."""
    return float((places(score, answer) < top).double().mean())
