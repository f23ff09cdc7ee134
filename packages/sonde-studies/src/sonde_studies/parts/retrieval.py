"""Ranking of documents by passage states, by word counts, and by both."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sonde import InputError
from sonde_studies.parts.choice import gain_of_best
from sonde_studies.parts.figures import resampled_error

TERM = re.compile(r"[a-z0-9]+")
SATURATION, LENGTH = 1.2, 0.75
SMOOTH = 60
SPREADS = 2.24
"""Standard errors of a gain: 5 % over two comparisons."""
Scores = Float[Tensor, "query document"]


def answers_of(
    recipe: str, documents: Sequence[Any], queries: Sequence[Any], key: str, least: int
) -> Int[Tensor, "query"]:
    """Return the correct document of each query, by a key that both sides have.

    Raises
    ------
    InputError
        If there are fewer than ``least`` queries, a key is missing or stands twice, or leads to no
        document.
    """
    missing = sum(key not in row for row in (*documents, *queries))
    if missing or len(queries) < least:
        raise InputError(
            f"{recipe}: expected {least} or more queries and the column {key!r} in every row, got "
            f"{len(queries)} queries and {missing} rows without it. Name it: key_column."
        )
    place = {row[key]: i for i, row in enumerate(documents)}
    lost = [row[key] for row in queries if row[key] not in place]
    if lost or len(place) < len(documents):
        raise InputError(
            f"{recipe}: expected each key once among the documents and each query's key among "
            f"them, got {len(documents) - len(place)} keys twice and {len(lost)} queries without a "
            f"document, e.g. {lost[:1]}."
        )
    return torch.tensor([place[row[key]] for row in queries])


def passage_scores(documents: Any, queries: Any) -> dict[str, Scores]:
    """Return the cosine of each document to each query, for three uses of its passages.

    Parameters
    ----------
    documents, queries : what ``sonde.gather`` returns
    """
    centre = documents.last.mean(0)
    passage, asked = (normalize(part.last - centre, dim=1) for part in (documents, queries))
    asked = normalize(queries.pooled(asked), dim=1)
    owner, near = documents.item, asked @ passage.T
    whole = normalize(documents.pooled(passage), dim=1)
    first = torch.cat([torch.tensor([True]), owner[1:] != owner[:-1]])
    best = torch.full((len(asked), len(whole)), -math.inf).double()
    return {
        "states, mean of passages": asked @ whole.T,
        "states, first passage": near[:, first],
        "states, best passage": best.scatter_reduce(1, owner.expand(len(asked), -1), near, "amax"),
    }


def bm25(documents: Sequence[str], queries: Sequence[str]) -> Float[Tensor, "query document"]:
    """Return the Okapi BM25 score of each document for each query, with the usual constants."""
    counts = [Counter(TERM.findall(text.lower())) for text in documents]
    holds = Counter(word for count in counts for word in count)
    lengths = np.array([sum(count.values()) for count in counts])
    share = SATURATION * (1 - LENGTH + LENGTH * lengths / max(lengths.mean(), 1))
    found = torch.zeros(len(queries), len(documents)).double()
    for i, query in enumerate(queries):
        for word in TERM.findall(query.lower()):
            if word in holds:
                rare = math.log(1 + (len(counts) - holds[word] + 0.5) / (holds[word] + 0.5))
                often = np.array([count[word] for count in counts])
                found[i] += torch.from_numpy(rare * often * (SATURATION + 1) / (often + share))
    return found


def fused(*scores: Scores) -> Scores:
    """Return combined scores by reciprocal rank fusion."""
    ranks = (torch.argsort(s, dim=1, descending=True, stable=True).argsort(1) for s in scores)
    return torch.stack([1 / (SMOOTH + r.double()) for r in ranks]).sum(0)


def places(score: Scores, answer: Int[Tensor, "query"]) -> Int[Tensor, "query"]:
    """Return how many documents score above the correct document; ties count half."""
    own = score.gather(1, answer[:, None])
    return (score > own).sum(1) + ((score == own).sum(1) - 1) // 2


def reciprocal_ranks(score: Scores, answer: Int[Tensor, "query"]) -> Float[Tensor, "query"]:
    """Return the mean reciprocal rank of the correct document over all orders of ties.

    One over the mean rank is less: words that no document holds would lose to scores by lot.
    """
    own = score.gather(1, answer[:, None])
    above, equal = (score > own).sum(1), (score == own).sum(1)
    total = torch.cat([torch.zeros(1), 1 / torch.arange(1, score.shape[1] + 1)]).double().cumsum(0)
    return (total[above + equal] - total[above]) / equal


def index_to_use(
    rank: Mapping[str, Float[Tensor, "query"]], seed: int
) -> tuple[str, Float[Tensor, "query"], float]:
    """Return the index to use, the gain of both over BM25, and its standard error.

    The states' arm is chosen on one half of the queries and judged on the other.

    Parameters
    ----------
    rank : dict of Tensor
        Reciprocal rank of each query's document in each arm.
    seed : int
    """
    states = {arm: value.numpy() for arm, value in rank.items() if arm.startswith("states")}
    found, shared = gain_of_best(states, {"BM25": rank["BM25"].numpy()}, seed)
    alone, wider = torch.from_numpy(found), (1 + shared) ** 0.5
    gain = rank["BM25 and states"] - rank["BM25"]
    spread = resampled_error(gain, seed)
    verdict = "use both" if float(gain.mean()) > SPREADS * spread else "use BM25"
    if float(alone.mean()) > SPREADS * wider * resampled_error(alone, seed):
        verdict = "use states"
    return verdict, gain, spread
