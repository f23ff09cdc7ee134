"""Test whether merged passage states find a document better than its first passage.

Modules of the standard library and a byte-level language model of 3 million parameters, which was
never trained for retrieval: the study compares ways to use its states, and says how far they are
behind counting words. It cannot show what a trained retriever would do.
"""

from typing import final

import numpy as np

from sonde import load
from sonde.data import open_inputs
from sonde_studies.recipes.document_retrieval import document_retrieval
from sonde_studies.study import Claim, Figures, Study, Tick

DOCUMENTS, TINY, BYTES, QUERY = 60, 14, 1280, 240


@final
class DocumentRetrievalStudy(Study):
    """Modules as documents, and a later piece of a module as the query."""

    name = "document-retrieval"
    title = "do merged states of passages find a document better than its first passage?"
    fidelity = (
        "the mean of passages as published, without the training of the encoder and the reranker; "
        "BM25 with the usual constants"
    )
    data = "60 modules of the standard library, 1,280 bytes each; queries: 240 later bytes of each"
    claims = (
        Claim(
            "merged",
            "The mean of all passages finds more than the first passage alone.",
            "recall at 5, mean of passages less first passage",
        ),
        Claim(
            "states",
            "States find more than chance.",
            "recall at 5 of the mean of passages less chance",
        ),
        Claim(
            "both",
            "States and BM25 together find more than BM25.",
            "recall at 5, both less BM25",
        ),
    )
    null = Claim(
        "permuted",
        "With the queries handed to other documents, states find what chance finds.",
        "recall at 5 of the mean of passages, less chance",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Sample modules, run the recipe, and again with permuted queries."""
        tick("read")
        model, n = load("sonde:stdlib"), TINY if tiny else DOCUMENTS
        draw = np.random.default_rng(seed)
        source = open_inputs(model, "sonde:stdlib/train-all").source
        texts = [row["text"] for row in source.rows() if len(row["text"]) > 4 * BYTES]
        chosen = [texts[int(i)] for i in draw.permutation(len(texts))[:n]]
        documents = [{"id": str(i), "text": t[BYTES : 2 * BYTES]} for i, t in enumerate(chosen)]
        queries = [
            {"id": str(i), "text": t[3 * BYTES : 3 * BYTES + QUERY]} for i, t in enumerate(chosen)
        ]
        found = document_retrieval(model, documents, queries, seed=seed, progress=False)
        tick("permute")
        order = (np.arange(n) + int(draw.integers(1, n))) % n
        other = [{"id": str(order[i]), "text": q["text"]} for i, q in enumerate(queries)]
        wrong = document_retrieval(model, documents, other, seed=seed, progress=False)
        recall, lost = ({r["arm"]: r["recall at 5"] for r in a.rows} for a in (found, wrong))
        merged = recall["states, mean of passages"]
        return {
            "merged": merged - recall["states, first passage"],
            "states": merged - 5 / n,
            "both": recall["BM25 and states"] - recall["BM25"],
            "permuted": lost["states, mean of passages"] - 5 / n,
            **{f"recall at 5 | {arm}": value for arm, value in recall.items()},
        }
