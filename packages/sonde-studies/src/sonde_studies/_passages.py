"""Questions and passages of planted worth, and a retriever and a reader for them.

A passage says what one relation gives for a subject, after the word of a source; some sources are
mostly right, others mostly wrong. A question names a subject and one of several words for a
relation, which passages do not use. Half of the relations of a subject stand in no passage.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

RELATIONS, WORDS, VALUES, SOURCES = 8, 3, 16, 6
TOLD, COPIES = 4, 2
"""Relations of a subject that passages are about, and passages about each."""
RELIABLE, UNRELIABLE = 0.95, 0.2
DIM, HIDDEN, WEIGHT, SMALL = 64, 128, 2.0, 0.5


@dataclass(frozen=True)
class Questions:
    """Questions of some subjects, and the pool of their passages; all entries are indices.

    Parameters
    ----------
    subject, relation, word, answer : Int[Tensor, "question"]
    about, fact, value, source : Int[Tensor, "passage"]
        Subject and relation of each passage, and what its source says.
    """

    subject: Int[Tensor, "question"]
    relation: Int[Tensor, "question"]
    word: Int[Tensor, "question"]
    answer: Int[Tensor, "question"]
    about: Int[Tensor, "passage"]
    fact: Int[Tensor, "passage"]
    value: Int[Tensor, "passage"]
    source: Int[Tensor, "passage"]

    def helpful(
        self, rows: Int[Tensor, "row"], passages: Int[Tensor, "row k"]
    ) -> Float[Tensor, "row k"]:
        """Return 1 where a passage is about the question and right."""
        same = (self.about[passages] == self.subject[rows, None]) & (
            self.fact[passages] == self.relation[rows, None]
        )
        return (same & (self.value[passages] == self.answer[rows, None])).double()

    @property
    def answerable(self) -> Int[Tensor, "row"]:
        """The questions that some passage is about."""
        told = {*zip(self.about.tolist(), self.fact.tolist(), strict=True)}
        pairs = zip(self.subject.tolist(), self.relation.tolist(), strict=True)
        return torch.tensor([i for i, pair in enumerate(pairs) if pair in told])


def questions_and_passages(seed: int, subjects: tuple[int, ...]) -> list[Questions]:
    """Return questions and their passages for several numbers of subjects, of one world."""
    draw = np.random.default_rng(seed)
    prior = draw.dirichlet(np.full(VALUES, 0.5), RELATIONS)
    reliable = draw.permutation(SOURCES) < SOURCES // 2
    found, first = list[Questions](), 0
    for n in subjects:
        truth = np.stack([draw.choice(VALUES, n, p=p) for p in prior], 1)
        own, relation = (x.ravel() for x in np.indices(truth.shape))
        word = relation * WORDS + draw.integers(WORDS, size=len(own))
        told = np.stack([draw.permutation(RELATIONS)[:TOLD] for _ in range(n)])
        fact = told.repeat(COPIES, 1).ravel()
        about = np.arange(n).repeat(TOLD * COPIES)
        source = draw.integers(SOURCES, size=len(about))
        right = draw.random(len(about)) < np.where(reliable[source], RELIABLE, UNRELIABLE)
        other = (truth[about, fact] + draw.integers(1, VALUES, len(about))) % VALUES
        value = np.where(right, truth[about, fact], other)
        columns = (own + first, relation, word, truth.ravel(), about + first, fact, value, source)
        found.append(Questions(*(torch.from_numpy(x).long() for x in columns)))
        first += n
    return found


class Retriever(nn.Module):
    """Sums of word vectors on both sides; only the vectors of subjects are shared, and fixed."""

    def __init__(self, subjects: int) -> None:
        super().__init__()
        drawn = nn.functional.normalize(torch.randn(subjects, DIM), dim=1)
        self.subject = nn.Parameter(WEIGHT * drawn, requires_grad=False)
        sizes = (RELATIONS * WORDS, RELATIONS, VALUES, SOURCES)
        self.word, self.fact, self.value, self.source = (
            nn.Parameter(SMALL * torch.randn(n, DIM) / DIM**0.5) for n in sizes
        )

    def forward(self, of: Questions, rows: Int[Tensor, "row"]) -> Float[Tensor, "row passage"]:
        """Return the score of each passage for some questions."""
        asked = self.subject[of.subject[rows]] + self.word[of.word[rows]]
        passage = self.subject[of.about] + self.fact[of.fact]
        passage = passage + self.value[of.value] + self.source[of.source]
        return asked @ passage.T


class Reader(nn.Module):
    """Logits of the answer to a question from one passage, or from none."""

    def __init__(self) -> None:
        super().__init__()
        words = RELATIONS * WORDS + RELATIONS + VALUES + SOURCES
        self.inner = nn.Sequential(
            nn.Linear(words + 1, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, VALUES),
        )

    def forward(
        self, of: Questions, rows: Int[Tensor, "row"], passages: Int[Tensor, "row"] | None = None
    ) -> Float[Tensor, "row value"]:
        """Return the logits after one passage for each question; None: after no passage."""
        hot = nn.functional.one_hot
        asked = hot(of.word[rows], RELATIONS * WORDS).float()
        if passages is None:
            rest = torch.zeros(len(rows), RELATIONS + VALUES + SOURCES + 1)
            return self.inner(torch.cat([asked, rest], 1))
        same = (of.about[passages] == of.subject[rows]).float()[:, None]
        parts = ((of.fact, RELATIONS), (of.value, VALUES), (of.source, SOURCES))
        read = [hot(column[passages], n).float() for column, n in parts]
        return self.inner(torch.cat([asked, *read, same], 1))

    def losses(
        self, of: Questions, rows: Int[Tensor, "row"], passages: Int[Tensor, "row k"] | None
    ) -> Float[Tensor, "row k"]:
        """Return the cross-entropy (nats) of the answer after each passage, or after none."""
        k = 1 if passages is None else passages.shape[1]
        each = rows.repeat_interleave(k)
        logits = self(of, each, None if passages is None else passages.flatten())
        loss = nn.functional.cross_entropy(logits, of.answer[each], reduction="none")
        return loss.reshape(len(rows), k)
