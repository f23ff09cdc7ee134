"""Random facts of four groups, and a net of one feed-forward layer that learns them by heart.

A fact is a subject, a relation and one of 24 answers. Its number counts groups, then subjects, then
relations; the facts of the last group are told to no net.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde_studies.worlds.learning import minimise

DIM, ANSWERS, RELATIONS, SUBJECTS, RATE = 64, 24, 4, 40, 3e-3
GROUPS = ("general", "first", "second", "untold")
Facts = Int[Tensor, "group fact"]


def facts_of_groups(seed: int) -> Facts:
    """Return the answer to each fact of each group."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(ANSWERS, (len(GROUPS), SUBJECTS * RELATIONS), generator=draw)


def numbers(groups: Sequence[str]) -> Int[Tensor, "fact"]:
    """Return the numbers of the facts of some groups."""
    n = SUBJECTS * RELATIONS
    return torch.cat([torch.arange(n) + n * GROUPS.index(group) for group in groups])


class FactMemory(nn.Module):
    """Answers to facts by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.subject = nn.Embedding(len(GROUPS) * SUBJECTS, DIM)
        self.relation = nn.Embedding(RELATIONS, DIM)
        self.before, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, ANSWERS)
        wide = 4 * DIM
        self.layer = nn.Sequential(nn.Linear(DIM, wide), nn.ReLU(), nn.Linear(wide, DIM))

    def states(self, fact: Int[Tensor, "fact"]) -> Float[Tensor, "fact dim"]:
        """Return the input of the layer."""
        subject = self.subject(fact // RELATIONS)
        return self.before(subject + self.relation(fact % RELATIONS))

    def forward(self, fact: Int[Tensor, "fact"]) -> Float[Tensor, "fact answer"]:
        """Return the logits of the answers."""
        return self.head(self.layer(self.states(fact)))


def tell(
    net: Any,
    facts: Facts,
    groups: Sequence[str],
    learned: list[nn.Parameter],
    steps: int,
    seed: int,
    penalty: float = 0.0,
) -> None:
    """Train some parameters on the facts of some groups.

    Parameters
    ----------
    net : nn.Module
        A ``FactMemory``; its ``layer`` may be replaced, e.g. by adapters beside it.
    facts, groups
        The answers, and the groups to train on.
    learned : list of nn.Parameter
        The others stay as they are.
    steps, seed
        Of the training; a batch is as large as the facts are many.
    penalty : float, default=0.0
        Weight of ``layer.change_on``, the change of the layer's output at general facts.
    """
    number, answer, general = numbers(groups), facts.flatten(), numbers(["general"])

    def loss(rows: Tensor) -> Tensor:
        asked = number[rows]
        found = cross_entropy(net(asked), answer[asked])
        return found + penalty * net.layer.change_on(net.states(general)) if penalty else found

    minimise(loss, learned, len(number), steps=steps, seed=seed, rate=RATE, batch=len(number))


@torch.no_grad()
def known_of(net: nn.Module, facts: Facts) -> dict[str, float]:
    """Return the accuracy on the facts of each group."""
    said = net(numbers(GROUPS)).argmax(1).reshape_as(facts)
    return dict(zip(GROUPS, (said == facts).double().mean(1).tolist(), strict=True))
