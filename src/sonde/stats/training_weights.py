"""Weights between training steps, with Adam's moments and sums of losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from sonde.core.state import State

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class Weights(State):
    """Weights after a number of steps, with Adam's means of gradients and squares.

    ``buffers`` are what a net keeps beside them and no gradient moves: running means, counts.
    """

    values: tuple[Tensor, ...]
    mean: tuple[Tensor, ...]
    square: tuple[Tensor, ...]
    steps: int
    buffers: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, *values: Tensor, buffers: Sequence[Tensor] = ()) -> "Weights":
        """Return weights before the first step."""
        zeros = tuple(torch.zeros_like(v) for v in values)
        return cls(values, zeros, zeros, 0, tuple(buffers))

    def live(self) -> "LiveWeights":
        """Return a copy that steps update in place."""
        values = [v.detach().clone().contiguous().requires_grad_() for v in self.values]
        kept = ([t.clone() for t in group] for group in (self.mean, self.square, self.buffers))
        return LiveWeights(values, *kept, steps=self.steps)


@dataclass
class LiveWeights:
    """Weights during training; ``values`` are leaf tensors with gradients.

    Parameters
    ----------
    values : list of Tensor
        The weights: leaf tensors with gradients.
    mean : list of Tensor
        Running means of the gradients, as Adam keeps them.
    square : list of Tensor
        Running means of the squared gradients, as Adam keeps them.
    buffers : list of Tensor
        Tensors that are kept with the weights and are not trained.
    steps : int
        Number of steps that were made.
    """

    values: list[Tensor]
    mean: list[Tensor]
    square: list[Tensor]
    buffers: list[Tensor]
    steps: int

    def adam(
        self,
        gradients: Sequence[Tensor],
        rate: float,
        decay: float = 0.0,
        decoupled: bool = False,
        first: int = 0,
    ) -> None:
        """Update the weights from index ``first`` on by Adam, or AdamW for decoupled decay.

        ``steps`` is not counted here: several groups of weights make one step.
        """
        which = slice(first, first + len(gradients))
        with torch.no_grad():
            adam(
                self.values[which],
                [g.detach().contiguous() for g in gradients],
                self.mean[which],
                self.square[which],
                [],
                [torch.tensor(float(self.steps), device=g.device) for g in gradients],
                fused=True,
                decoupled_weight_decay=decoupled,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate,
                weight_decay=decay,
                eps=EPSILON,
                maximize=False,
            )

    def kept(self) -> Weights:
        """Return the current weights."""
        values = tuple(v.detach() for v in self.values)
        return Weights(
            values, tuple(self.mean), tuple(self.square), self.steps, tuple(self.buffers)
        )


@dataclass(frozen=True)
class Tally(State):
    """A sum of losses and its number of rows."""

    total: float = 0.0
    n: int = 0

    @property
    def average(self) -> float:
        """Mean loss of a row; infinite without rows."""
        return self.total / self.n if self.n else math.inf

    def plus(self, total: float, n: int) -> "Tally":
        """Return the tally with further rows' losses added."""
        return Tally(self.total + total, self.n + n)
