"""Tokens of human and model texts, with the features that a detector reads."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sonde import Model, Stream, read
from sonde.detect import PAWN
from sonde_studies._separation import area
from sonde_studies._written import HUMAN, MACHINE, Texts, code, prose, written

DOMAINS = {"code": code, "prose": prose}


@dataclass(frozen=True)
class Sizes:
    """Texts per writer, token counts of a beginning and of a text, training epochs."""

    fit: int = 256
    test: int = 128
    prompt: int = 16
    length: int = 144
    epochs: int = 15


@dataclass(frozen=True)
class Tokens:
    """Every predicted token of some texts: its state, its metrics and its position."""

    states: Tensor
    metrics: Tensor
    text: Tensor
    position: Tensor
    label: Tensor

    def means(self, rows: Tensor) -> Tensor:
        """Return the mean of rows over each text."""
        n = len(self.label)
        total = torch.zeros(n, rows.shape[1]).index_add_(0, self.text, rows.float())
        return total / torch.bincount(self.text, minlength=n)[:, None]

    def stateless(self) -> "Tokens":
        """Return the tokens with states of zero, so that only positions count."""
        return replace(self, states=torch.zeros_like(self.states))

    def separated(self, score: Tensor) -> float:
        """Return how well a score separates machine texts from human ones."""
        return area(score[self.label == HUMAN], score[self.label == MACHINE])


def texts_of(model: Model, domain: str, n: int, sizes: Sizes, draw: np.random.Generator) -> Texts:
    return written(model, DOMAINS[domain](), n, sizes.prompt, sizes.length, draw)


def reading_of(model: Model, texts: Texts) -> Stream:
    each = enumerate(zip(texts.ids, texts.label, strict=True))
    items = [{"input_ids": ids, "id": str(i), "label": label} for i, (ids, label) in each]
    return read(model, items, **PAWN().reading())


def tokens_with(stream: Stream, texts: Texts) -> Tokens:
    """Return the predicted tokens of texts, with their states."""
    first, second = (s.key for s in stream.schema)
    parts: list[tuple[Tensor, ...]] = []
    for batch in stream:
        name = torch.tensor([int(i) for i in batch.ids])
        place = {
            (int(name[e]), int(p)): row
            for row, (e, p) in enumerate(
                zip(batch.example[first].tolist(), batch.position[first].tolist(), strict=True)
            )
        }
        here = name[batch.example[second]]
        at = batch.position[second]
        rows = [place[key] for key in zip(here.tolist(), at.tolist(), strict=True)]
        parts.append((batch.rows[first][rows].float(), batch.rows[second], here, at))
    states, metrics, text, position = (torch.cat(p) for p in zip(*parts, strict=True))
    order = torch.argsort(text * (1 << 20) + position)
    label = torch.tensor(texts.label)
    return Tokens(states[order], metrics[order], text[order], position[order], label)
