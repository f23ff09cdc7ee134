"""Heads that read classes from states, texts or sets of states, with ``fit`` and ``predict``."""

from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer  # pyright: ignore
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Attention, Readout
from sonde_studies.worlds.learning import drawn, minimise

CHARACTERS = (1, 3)


def linear_head(strength: float = 0.1, *between: Any) -> Any:
    """Return a logistic regression on standardised rows; steps ``between`` come before it."""
    head = LogisticRegression(C=strength, max_iter=500)
    return make_pipeline(StandardScaler(), *between, head)


def character_head() -> Any:
    """Return a logistic regression on counts of one to three characters, which reads texts."""
    counts = TfidfVectorizer(analyzer="char", ngram_range=CHARACTERS, max_features=3000)
    return make_pipeline(counts, LogisticRegression(C=10))


class SetHead(nn.Module):
    """Attention over the states of a set, a learned query that reads it, and a linear head.

    Parameters
    ----------
    order : int
        Of the attention.
    dim, steps : int
        Width and steps of training.
    seed : int, default=0
    """

    def __init__(self, order: int, dim: int = 32, steps: int = 300, seed: int = 0) -> None:
        super().__init__()
        self.order, self.dim, self.steps, self.seed = order, dim, steps, seed

    def forward(self, views: Tensor) -> Tensor:
        """Return the logits of sets (set, view, dim)."""
        h = self.first(views)
        return self.last(self.join(h + self.mix(h))[:, 0])

    def fit(self, views: Tensor, label: Any) -> "SetHead":
        """Learn from sets of one to all of the views, drawn anew in each step."""
        self.classes_, number = np.unique(label, return_inverse=True)
        shown, target = views.float(), torch.from_numpy(number)
        drawn(lambda: self._build(shown.shape[2]), self.seed)

        def loss(rows: Tensor) -> Tensor:
            n = shown.shape[1]
            some = torch.randperm(n)[: int(torch.randint(1, n + 1, ()))]
            return cross_entropy(self(shown[rows][:, some]), target[rows])

        minimise(loss, self.parameters(), len(shown), steps=self.steps, seed=self.seed)
        return self.eval()

    @torch.no_grad()
    def predict(self, views: Tensor) -> Any:
        """Return the class of each set."""
        return self.classes_[self(views.float()).argmax(1).numpy()]

    def _build(self, width: int) -> nn.Module:
        self.first = nn.Linear(width, self.dim)
        self.mix = Attention(self.dim, 4, order=self.order)
        self.join = Readout([self.dim], self.dim, "queries")
        self.last = nn.Linear(self.dim, len(self.classes_))
        return self
