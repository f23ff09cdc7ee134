"""Weights of a small net that is trained by steps, as states: pure functions, no module.

For learners. A state holds the weights with the running means of Adam, so training goes on from it
with the same bits; randomness comes from a seed and a count of steps.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from sonde.core.state import State

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class Weights(State):
    """Weights after a number of steps, and Adam's means of their gradients and squares."""

    values: tuple[Tensor, ...]
    mean: tuple[Tensor, ...]
    square: tuple[Tensor, ...]
    steps: int

    @classmethod
    def of(cls, *values: Tensor) -> "Weights":
        """Return weights before the first step."""
        zeros = tuple(torch.zeros_like(v) for v in values)
        return cls(values, zeros, zeros, 0)

    def live(self) -> list[Tensor]:
        """Return the weights as leaves that gradients are taken of."""
        return [v.detach().clone().requires_grad_() for v in self.values]

    def stepped(
        self,
        gradients: Sequence[Tensor],
        rate: float,
        decay: float = 0.0,
        decoupled: bool = False,
    ) -> "Weights":
        """Return the weights after one step of Adam; of AdamW where the decay is decoupled."""
        steps = self.steps + 1
        values, means, squares = [], [], []
        for v, m, s, gradient in zip(self.values, self.mean, self.square, gradients, strict=True):
            shrunk = v * (1 - rate * decay) if decoupled else v
            g = gradient.detach() if decoupled else gradient.detach() + decay * v
            m = BETAS[0] * m + (1 - BETAS[0]) * g
            s = BETAS[1] * s + (1 - BETAS[1]) * g * g
            spread = (s / (1 - BETAS[1] ** steps)).sqrt() + EPSILON
            values.append(shrunk - rate / (1 - BETAS[0] ** steps) * m / spread)
            means.append(m)
            squares.append(s)
        return Weights(tuple(values), tuple(means), tuple(squares), steps)


@dataclass(frozen=True)
class Tally(State):
    """A sum of losses and how many rows it is over."""

    total: float = 0.0
    n: int = 0

    @property
    def average(self) -> float:
        """Loss of a row; infinite without any."""
        return self.total / self.n if self.n else math.inf

    def plus(self, total: float, n: int) -> "Tally":
        """Return the sum with that of more rows."""
        return Tally(self.total + total, self.n + n)


def generator(*key: int | str) -> torch.Generator:
    """Return a generator on the CPU that is seeded by whole numbers and words."""
    text = "|".join(map(str, key)).encode()
    word = int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(word >> 1)


def xavier(source: torch.Generator, n_out: int, n_in: int) -> Tensor:
    """Return a normal matrix of variance ``2 / (n_in + n_out)``."""
    scale = (2.0 / (n_in + n_out)) ** 0.5
    return scale * torch.randn(n_out, n_in, generator=source)


def minibatches(n: int, size: int, source: torch.Generator) -> Iterator[Tensor]:
    """Yield the numbers below ``n`` in random order, in parts of ``size`` to less than twice it."""
    order = torch.randperm(n, generator=source)
    yield from order.tensor_split(max(1, n // size))
