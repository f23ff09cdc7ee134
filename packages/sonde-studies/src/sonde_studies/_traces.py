"""Traces of a small model on prompts of the chains world, and the training texts."""

from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import Model
from sonde_studies._language import reinforce, sampled, train
from sonde_studies.worlds.chains import CLOSE, OPEN, STOP, Chains

STEPS, TRIED, ENOUGH, LONGEST = 1500, 150, 0.65, 64


BEGUN, REWARDED, ASKED = 0.35, 80, 32


SAMPLES, FEW = 8, 20


READING = {"span": (OPEN, CLOSE), "reducer": "step_deltas"}


@dataclass(frozen=True)
class Traces:
    """A model's traces after prompts, without unfinished ones.

    Parameters
    ----------
    rows : list of dict
        What ``sonde.read`` takes: text, prompt as group, label 1 where the answer is wrong.
    chance, least : Tensor (trace,)
        Mean and least chance of the tokens.
    """

    rows: list[dict[str, Any]]
    chance: Tensor
    least: Tensor

    @property
    def wrong(self) -> Tensor:
        """True for wrong answers."""
        return torch.tensor([row["label"] == 1 for row in self.rows])

    @property
    def right(self) -> float:
        """Fraction of correct answers."""
        return 1 - float(self.wrong.double().mean())

    @property
    def prompts(self) -> list[str]:
        """The prompt of each trace."""
        return [row["group"] for row in self.rows]

    @property
    def answers(self) -> list[str]:
        """The text after each trace."""
        return [row["text"].partition(CLOSE)[2] for row in self.rows]

    @property
    def length(self) -> Tensor:
        """Number of tokens of each text."""
        return torch.tensor([float(len(row["text"])) for row in self.rows])

    def where(self, kept: Tensor) -> "Traces":
        """Return some of the traces."""
        rows = [row for row, keep in zip(self.rows, kept.tolist(), strict=True) if keep]
        return Traces(rows, self.chance[kept], self.least[kept])


def imitating(
    model: Model, world: Chains, draw: np.random.Generator, steps: int, share: float
) -> tuple[Model, int]:
    """Train a model until it is accurate enough; return it and the number of steps."""
    tried = world.prompts(min(TRIED, 2 * world.modulus**2), draw)

    def enough() -> bool:
        texts, _ = sampled(model, list(tried), STOP, draw)
        return fmean(map(is_right, texts, tried.values())) >= share

    return model, train(model, lambda n: [world.text(draw) for _ in range(n)], steps, OPEN, enough)


def is_right(text: str, answer: str) -> bool:
    return text.partition(CLOSE)[2] == answer


def reward(model: Model, world: Chains, draw: np.random.Generator, steps: int) -> None:
    """Train a model further by reward on its own answers; prompts of a step have one length."""

    def prompts() -> dict[str, str]:
        n = int(draw.integers(world.least, world.most + 1))
        return replace(world, least=n, most=n).prompts(min(ASKED, world.modulus**2), draw)

    reinforce(model, prompts, is_right, steps, STOP, draw)


def traces_of(model: Model, prompts: dict[str, str], draw: np.random.Generator) -> Traces:
    """Return several samples for each prompt."""
    names = [name for name in prompts for _ in range(SAMPLES)]
    texts, chances = sampled(model, names, STOP, draw)
    rows = [
        {
            "id": f"trace {i}",
            "text": name + text,
            "group": name,
            "label": int(not is_right(text, prompts[name])),
        }
        for i, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    mean, least = (torch.stack([f(c) for c in chances]) for f in (torch.mean, torch.amin))
    return Traces(rows, mean, least).where(torch.tensor([CLOSE in text for text in texts]))
