"""Late interaction: documents scored by the best match of each window of a query."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sonde import Model, read
from sonde_studies.arms import note

WINDOW, DIM, SHARP = 16, 64, 20.0
STEPS, RATE = 60, 3e-3


@dataclass(frozen=True)
class Windows:
    """Mean states of short windows of texts.

    Parameters
    ----------
    states : Float[Tensor, "window dim"]
    item : Int[Tensor, "window"]
        The text that each window is of.
    """

    states: Float[Tensor, "window dim"]
    item: Int[Tensor, "window"]


@dataclass(frozen=True)
class Passages:
    """Mean states of passages, with what ``passage_scores`` asks of them.

    Parameters
    ----------
    last : Float[Tensor, "passage dim"]
    item : Int[Tensor, "passage"]
        The text that each passage is of.
    length : Int[Tensor, "passage"]
        Tokens.
    """

    last: Float[Tensor, "passage dim"]
    item: Int[Tensor, "passage"]
    length: Int[Tensor, "passage"]

    def pooled(self, x: Float[Tensor, "passage dim"]) -> Float[Tensor, "item dim"]:
        """Return the mean over the passages of each text, weighted by length."""
        share = self.length.to(x)[:, None]
        total = x.new_zeros(int(self.item.max()) + 1, 1 + x.shape[1])
        total.index_add_(0, self.item, torch.cat([share, share * x], 1))
        return total[:, 1:] / total[:, :1]


def passages_and_windows(model: Model, texts: list[str]) -> tuple[Passages, Windows]:
    """Return the mean state of each passage of texts, and of each window of ``WINDOW`` tokens.

    The states are those after the last block; a text longer than the context is cut into passages.
    """
    stream = read(
        model, [{"text": t} for t in texts], text_column="text", reducer="tokens", check=False
    )
    source = stream.source_rows
    passages = dict[int, Tensor]()
    for batch in stream:
        key = list(batch.rows)[-1]
        for i, place in enumerate(batch.order.tolist()):
            passages[place] = batch.rows[key][batch.example[key] == i].double()
    places = sorted(passages, key=lambda p: (p if source is None else source[p], p))
    item = torch.tensor([p if source is None else int(source[p]) for p in places])
    found = [passages[p] for p in places]
    lengths = torch.tensor([len(x) for x in found])
    means = Passages(torch.stack([x.mean(0) for x in found]), item, lengths)
    cut = [torch.stack([part.mean(0) for part in x.split(WINDOW)]) for x in found]
    counts = torch.tensor([len(x) for x in cut])
    return means, Windows(torch.cat(cut).float(), item.repeat_interleave(counts))


def best_matches(
    documents: Float[Tensor, "window dim"],
    queries: Float[Tensor, "window2 dim"],
    of_documents: Int[Tensor, "window"],
    of_queries: Int[Tensor, "window2"],
) -> Float[Tensor, "query document"]:
    """Return the mean over a query's windows of the largest cosine with a document's windows."""
    near = normalize(queries, dim=1) @ normalize(documents, dim=1).T
    n, m = int(of_queries.max()) + 1, int(of_documents.max()) + 1
    best = near.new_full((len(near), m), -torch.inf)
    best = best.scatter_reduce(1, of_documents.expand(len(near), -1), near, "amax")
    total = near.new_zeros(n, m).index_add(0, of_queries, best)
    return total / of_queries.bincount(minlength=n)[:, None]


class Reranker(nn.Module):
    """Scores of documents for queries by best matches of projected windows (MaxSim).

    Windows are whitened before the projection, which is the identity at first.

    Parameters
    ----------
    documents : Windows
        The centre and the whitening of the directions of largest variance come from these.
    """

    def __init__(self, documents: Windows) -> None:
        super().__init__()
        x = documents.states
        self.centre = x.mean(0)
        _, spread, axes = torch.linalg.svd(x - self.centre, full_matrices=False)
        k = min(DIM, len(axes))
        scale = spread[:k] / len(x) ** 0.5
        self.whiten = (axes[:k] / scale[:, None]).T.contiguous()
        self.project = nn.Parameter(torch.eye(k).to(x))

    def forward(self, documents: Windows, queries: Windows) -> Float[Tensor, "query document"]:
        """Return the score of each document for each query."""
        mixed = self.whiten @ self.project
        own = (documents.states - self.centre) @ mixed
        asked = (queries.states - self.centre) @ mixed
        return best_matches(own, asked, documents.item, queries.item)


@torch.enable_grad()
def trained_reranker(
    documents: Windows, queries: Windows, answer: Int[Tensor, "query"], steps: int = STEPS
) -> Reranker:
    """Return a reranker trained to score the correct document of each query highest."""
    found = Reranker(documents)
    note(rows=len(answer))
    optimiser = torch.optim.Adam(found.parameters(), RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(SHARP * found(documents, queries), answer).backward()
        optimiser.step()
    return found


def reranked(
    first: Float[Tensor, "query document"], second: Float[Tensor, "query document"], k: int
) -> Float[Tensor, "query document"]:
    """Return scores that order the first ``k`` documents by the second scores, the rest as before.

    Examples
    --------
    >>> reranked(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0.1, 0.5, 0.9]]), 2).argsort(1)
    tensor([[2, 0, 1]])
    """
    place = first.argsort(dim=1, descending=True, stable=True).argsort(1)
    again = second.masked_fill(place >= k, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return -torch.where(place < k, again.argsort(1), place).to(first)
