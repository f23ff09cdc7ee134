"""States of answers to plain prompts, with correctness and token probabilities."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sonde import Model, read
from sonde.detect import FeatureGaps
from sonde.metrics import prediction_rejection
from sonde_studies._questions import (
    DOMAINS,
    FACTS_TEST,
    MODE_EXPLAIN,
    Row,
    World,
    answered,
    reading,
)

PROMPTS = ("use", "ignore", MODE_EXPLAIN, "tell", "honest", "lie")


TRAINED_CONFLICT, CONFLICT = 0.2, 0.6


@dataclass(frozen=True)
class Answers:
    """Answers to plain prompts: rows by site, correctness, and token log-probabilities."""

    rows: dict[str, Tensor]
    wrong: Tensor
    log_p: Tensor

    @property
    def right(self) -> float:
        """Fraction of correct answers."""
        return float((~self.wrong).double().mean())

    def surprise(self) -> Tensor:
        """Return minus the mean token log-probability."""
        return -self.log_p

    def rejection(self, scores: Tensor) -> float:
        """Return the prediction rejection ratio of scores."""
        right = (~self.wrong).double()
        return float(prediction_rejection(scores, right, resamples=0).value)

    def site_rows(self) -> list[Tensor]:
        """Return the rows of each site."""
        return list(self.rows.values())


Contrasts = tuple[dict[str, Tensor], list[int], list[int]]


def asked_of(
    model: Model, world: World, domain: str, n: int, conflict: float, draw: np.random.Generator
) -> Answers:
    """Return a model's answers to plain prompts."""
    questions = [world.question(domain, FACTS_TEST, conflict, draw) for _ in range(n)]
    said, log_p = answered(model, questions)
    wrong = torch.tensor([a != q.right for a, q in zip(said, questions, strict=True)])
    items = [reading(q, "tell", a) for q, a in zip(questions, said, strict=True)]
    return Answers(rows_of(model, items), wrong, log_p)


def contrasts_of(model: Model, world: World, n: int, draw: np.random.Generator) -> Contrasts:
    """Return rows of answers after all six prompts, with each row's answer and prompt."""
    questions = [world.question(DOMAINS[0], FACTS_TEST, CONFLICT, draw) for _ in range(n)]
    said, _ = answered(model, questions)
    items = [reading(q, mode, a) for q, a in zip(questions, said, strict=True) for mode in PROMPTS]
    pair = [i for i in range(n) for _ in PROMPTS]
    return rows_of(model, items), pair, list(range(len(PROMPTS))) * n


def rows_of(model: Model, items: list[Row]) -> dict[str, Tensor]:
    """Return the row of each item at each site, in item order."""
    stream = read(
        model, [{**item, "id": str(i)} for i, item in enumerate(items)],
        span=("start", "end"), **FeatureGaps().reading(),
    )  # fmt: skip
    found: dict[str, list[Tensor]] = {}
    place: dict[str, list[int]] = {}
    for batch in stream:
        for site, rows in batch.rows.items():
            found.setdefault(site, []).append(rows)
            names = (int(batch.ids[int(i)]) for i in batch.example[site].tolist())
            place.setdefault(site, []).extend(names)
    order = {site: torch.tensor(names).argsort() for site, names in place.items()}
    return {site: torch.cat(rows)[order[site]] for site, rows in found.items()}
