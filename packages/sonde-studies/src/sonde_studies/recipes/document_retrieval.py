"""Retrieval of documents by the states of their passages, against BM25."""

from typing import Any

from sonde import Model, gather, read
from sonde.core import ChartAxis, bars
from sonde.data import rows_of
from sonde.report import Answer
from sonde_studies.parts.figures import names
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.retrieval import (
    answers_of,
    bm25,
    fused,
    index_to_use,
    passage_scores,
    places,
    reciprocal_ranks,
)

QUESTION = "Do the states of this model find the right document?"
LEAST = 10
"""Queries."""
WEAK = "States of a model that was not trained for retrieval are a weak index."


@copies_once(one_of_group=("queries",))
def document_retrieval(
    model: Model,
    documents: Any,
    queries: Any,
    *,
    key_column: str = "id",
    text_column: str = "text",
    site: str = "auto",
    top: int = 5,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Find documents by the states of their passages, and say whether that beats counting words.

    A document longer than the model reads at once is cut into passages. Its vector is the mean of
    their states weighted by length, the first passage's, or its best passage counts. Arms besides:
    BM25, which knows no model, and the ranks of both together.

    Example: sonde recipe document-retrieval MODEL DOCUMENTS QUERIES -o retrieval.html

    Parameters
    ----------
    model : Model
        A text model.
    documents : str, path or iterable
        Rows with a text and a key.
    queries : str, path or iterable
        Rows with a text and the key of the document that answers it.
    key_column : str, default="id"
        Column of the key, on both sides.
    text_column : str, default="text"
        Column of the text, on both sides.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    top : int, default=5
        A query counts as answered where its document is among this many.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first documents and queries.
    seed : int, default=0
        Draws the resamples behind the interval.
    """
    options: dict[str, Any] = {"text_column": text_column, "limit": limit, "reducer": "mean"}
    rows = [rows_of(part, limit) for part in (documents, queries)]
    answer = answers_of("document_retrieval", rows[0], rows[1], key_column, LEAST)
    states = [
        gather(read(model, part, sites=site, **options), progress) for part in (documents, queries)
    ]
    found = passage_scores(states[0], states[1])
    found["BM25"] = bm25(*([str(r[text_column]) for r in side] for side in rows))
    found["BM25 and states"] = fused(found["BM25"], found["states, mean of passages"])
    place = {arm: places(score, answer) for arm, score in found.items()}
    hit = {arm: (p < top).double() for arm, p in place.items()}
    rank = {arm: reciprocal_ranks(score, answer) for arm, score in found.items()}
    own = max((k for k in rank if k.startswith("states")), key=lambda k: float(rank[k].mean()))
    verdict, gain, spread = index_to_use(rank, seed)
    table = [
        {
            "arm": arm,
            "recall at 1": float((p < 1).double().mean()),
            f"recall at {top}": float(hit[arm].mean()),
            "mean reciprocal rank": float(rank[arm].mean()),
        }
        for arm, p in place.items()
    ]
    kinds = {"BM25": "words", "BM25 and states": "both"}
    points = [
        {"arm": arm, "recall": float(h.mean()), "ranked by": kinds.get(arm, "states")}
        for arm, h in hit.items()
    ]
    recall = ChartAxis("recall", title=f"recall at {top}", share=True, zero=True)
    title = f"Queries whose document is among the first {top}"
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="warning" if verdict == "use BM25" else "clear",
        sentence=f"The mean reciprocal rank of the right document is {rank['BM25'].mean():.3f} for "
        f"BM25, {rank[own].mean():.3f} for the states ({own.removeprefix('states, ')}) and "
        f"{rank['BM25 and states'].mean():.3f} for both together. Of {len(answer)} queries, BM25 "
        f"has the right one of {len(rows[0])} documents among the first {top} for "
        f"{hit['BM25'].mean():.0%}, the states for {hit[own].mean():.0%}, both together for "
        f"{hit['BM25 and states'].mean():.0%}.",
        value=float(gain.mean()),
        se=spread,
        n=len(answer),
        direction="higher",
        rows=tuple(table),
        drawn=bars(title, points, recall, names("arm"), by="ranked by"),
        facts={"passages": str(len(states[0])), "recall by chance": f"{top / len(rows[0]):.3g}"},
        advice=(
            f"Mean reciprocal rank of both together less BM25: {gain.mean():+.3f} ± {spread:.3f} "
            "(standard error over queries).",
            *([WEAK] if verdict == "use BM25" else []),
        ),
    )
