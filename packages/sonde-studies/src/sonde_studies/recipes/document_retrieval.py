"""Retrieval by hidden states: documents found by the states of their passages, beside BM25."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, bars
from sonde.data import rows_of
from sonde.report import Answer

QUESTION = "Do the states of this model find the right document?"
WORD = re.compile(r"[a-z0-9]+")
LEAST, RESAMPLES, SMOOTH = 10, 500, 60
SATURATION, LENGTH = 1.2, 0.75


def document_retrieval(
    model: Model,
    documents: Any,
    queries: Any,
    *,
    key_column: str = "id",
    text_column: str = "text",
    site: str = "auto",
    top: int = 5,
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
    limit : int, optional
        Read only the first documents and queries.
    seed : int, default=0
        Draws the resamples behind the interval.
    """
    options = {"text_column": text_column, "limit": limit}
    rows = [rows_of(part, limit) for part in (documents, queries)]
    answer = _answers(rows[0], rows[1], key_column)
    states = [
        gather(read(model, part, sites=site, reducer="mean", **options), progress)
        for part in (documents, queries)
    ]
    found = _scores(states[0], states[1], len(rows[0]))
    found["BM25"] = bm25(*([str(r[text_column]) for r in side] for side in rows))
    pair = ("BM25", "states, mean of passages")
    found["BM25 and states"] = torch.stack([1 / (SMOOTH + _ranks(found[k])) for k in pair]).sum(0)
    place = {name: _places(score, answer) for name, score in found.items()}
    hit = {name: (p < top).double() for name, p in place.items()}
    own = max((k for k in hit if k.startswith("states")), key=lambda k: float(hit[k].mean()))
    gain, alone = hit["BM25 and states"] - hit["BM25"], hit[own] - hit["BM25"]
    spread = _spread(gain, seed)
    verdict = "use both" if float(gain.mean()) > 2 * spread else "use BM25"
    verdict = "use states" if float(alone.mean()) > 2 * _spread(alone, seed) else verdict
    table = _rows(place, top)
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="warning" if verdict == "use BM25" else "clear",
        sentence=f"Of {len(answer)} queries, BM25 has the right one of {len(rows[0])} documents "
        f"among the first {top} for {hit['BM25'].mean():.0%}, the states "
        f"({own.removeprefix('states, ')}) for {hit[own].mean():.0%}, both together for "
        f"{hit['BM25 and states'].mean():.0%}.",
        value=float(gain.mean()),
        se=spread,
        n=len(answer),
        direction="higher",
        rows=table,
        drawn=bars(
            f"Queries whose document is among the first {top}",
            [
                {"arm": r["arm"], "recall": r[f"recall at {top}"], "ranked by": _kind(r["arm"])}
                for r in table
            ],
            ChartAxis("recall", title=f"recall at {top}", share=True, zero=True),
            ChartAxis("arm", title=""),
            by="ranked by",
        ),
        facts={"passages": str(len(states[0])), "recall by chance": f"{top / len(rows[0]):.3g}"},
        advice=(
            f"Both together less BM25: {gain.mean():+.3f} ± {spread:.3f} (standard error over "
            "queries). States of a model that was not trained for retrieval are a weak index.",
        ),
    )


def _kind(arm: str) -> str:
    return "states" if arm.startswith("states") else "words" if arm == "BM25" else "both"


def _scores(documents: Any, queries: Any, n: int) -> dict[str, Tensor]:
    """Return the score of each document for each query, by each way to use its passages."""
    key = [*documents.rows][-1]
    centre = documents.rows[key].double().mean(0)
    passage, asked = (_unit(part.rows[key].double() - centre) for part in (documents, queries))
    asked = _pooled(asked, queries.length.double(), queries.item)
    owner, near = documents.item, asked @ passage.T
    first = torch.cat([torch.tensor([True]), owner[1:] != owner[:-1]])
    best = torch.full((len(asked), n), -math.inf).double()
    return {
        "states, mean of passages": asked @ _pooled(passage, documents.length.double(), owner).T,
        "states, first passage": near[:, first],
        "states, best passage": best.scatter_reduce(1, owner.expand(len(asked), -1), near, "amax"),
    }


def _spread(gain: Tensor, seed: int) -> float:
    """Return the standard error of a mean over queries, by resampling."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(gain), (RESAMPLES, len(gain)), generator=draw)
    return float(gain[chosen].mean(1).std())


def _rows(place: dict[str, Tensor], top: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "arm": name,
            "recall at 1": float((p < 1).double().mean()),
            f"recall at {top}": float((p < top).double().mean()),
            "mean reciprocal rank": float((1 / (p.double() + 1)).mean()),
        }
        for name, p in place.items()
    )


def _answers(documents: Sequence[Any], queries: Sequence[Any], key: str) -> Tensor:
    """Return which document answers each query."""
    missing = sum(key not in row for row in (*documents, *queries))
    if missing or len(queries) < LEAST:
        raise InputError(
            f"document_retrieval: expected {LEAST} or more queries and the column {key!r} in every "
            f"row, got {len(queries)} queries and {missing} rows without it. Name it: key_column."
        )
    place = {row[key]: i for i, row in enumerate(documents)}
    lost = [row[key] for row in queries if row[key] not in place]
    if lost or len(place) < len(documents):
        raise InputError(
            f"document_retrieval: expected each key once among the documents and each query's key "
            f"among them, got {len(documents) - len(place)} keys twice and {len(lost)} queries "
            f"without a document, e.g. {lost[:1]}."
        )
    return torch.tensor([place[row[key]] for row in queries])


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _pooled(x: Tensor, weight: Tensor, owner: Tensor) -> Tensor:
    """Return the weighted mean of the rows of each owner, at length one."""
    total = torch.zeros(int(owner.max()) + 1, x.shape[1]).double()
    total.index_add_(0, owner, x * weight[:, None])
    return _unit(total)


def bm25(documents: Sequence[str], queries: Sequence[str]) -> Tensor:
    """Return the Okapi BM25 score of each document for each query, with the usual constants."""
    counts = [Counter(WORD.findall(text.lower())) for text in documents]
    holds = Counter(word for count in counts for word in count)
    lengths = np.array([sum(count.values()) for count in counts])
    share = SATURATION * (1 - LENGTH + LENGTH * lengths / max(lengths.mean(), 1))
    found = torch.zeros(len(queries), len(documents)).double()
    for i, query in enumerate(queries):
        for word in WORD.findall(query.lower()):
            if word in holds:
                rare = math.log(1 + (len(counts) - holds[word] + 0.5) / (holds[word] + 0.5))
                often = np.array([count[word] for count in counts])
                found[i] += torch.from_numpy(rare * often * (SATURATION + 1) / (often + share))
    return found


def _ranks(score: Tensor) -> Tensor:
    return torch.argsort(score, dim=1, descending=True, stable=True).argsort(1).double()


def _places(score: Tensor, answer: Tensor) -> Tensor:
    """Return how many documents score above the right one; of equals, half."""
    own = score.gather(1, answer[:, None])
    return (score > own).sum(1) + ((score == own).sum(1) - 1) // 2
