"""The training of ``InfoNCE``: a critic finds the partner of a row among those of other groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from sonde.stats import Moments, MomentsState
from sonde.stats.training import Examples, Trainer, TrainingState, generator, xavier
from sonde.stats.training_weights import LiveWeights, Weights

HELD = 5
PATIENCE = 10


@dataclass(frozen=True, kw_only=True)
class CriticTrainingState(TrainingState):
    """State of a training; the first walk finds the mean and spread of each unit of both sites."""

    x: MomentsState
    y: MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class CriticTraining(Trainer[CriticTrainingState]):
    """The training of ``InfoNCE``; its parameters are described there.

    A walk takes one row of each group, so that no batch holds two rows of the same group.
    """

    dim2: int
    hidden: int
    embedding: int
    passes: int
    batch: int
    rate: float
    seed: int
    patience: int = PATIENCE

    def start(self, dim: int) -> CriticTrainingState:
        """Return a critic that scores all pairs alike: the last map of the second site is 0."""
        source, k = generator("critic", self.seed), self.embedding
        widths = [self.hidden] if self.hidden else []
        first: list[Tensor] = []
        for n_in in (dim, self.dim2):
            for n_out in widths:
                first += [xavier(source, n_out, n_in), torch.zeros(n_out)]
        last = xavier(source, k, self.hidden or dim), torch.zeros(k + 1, self.hidden or self.dim2)
        zeros = [torch.zeros(n, dtype=torch.float64) for n in (dim, self.dim2)]
        x, y = (MomentsState(0, zero, zero) for zero in zeros)
        return CriticTrainingState(weights=Weights.of(*first, *last), x=x, y=y)

    def survey(
        self, state: CriticTrainingState, x: Tensor, y: Tensor, group: Tensor
    ) -> CriticTrainingState:
        """Learn the mean and the spread of each unit."""
        moments = Moments("diag")
        seen_x = moments.merge(state.x, moments.observe(x))
        return replace(state, x=seen_x, y=moments.merge(state.y, moments.observe(y)))

    def examples(
        self,
        state: CriticTrainingState,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
        group: Int[Tensor, "row"],
    ) -> tuple[CriticTrainingState, Examples]:
        """Return one row of each group; the same groups are held out in every walk."""
        chosen = one_of_each(group, generator("walk", self.seed, state.walks))
        order = torch.randperm(len(chosen), generator=generator("held", self.seed))
        held = order < max(2, len(chosen) // HELD)
        return state, Examples((x[chosen], y[chosen]), held)

    def loss(
        self, state: CriticTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Tensor, tuple[Tensor]]:
        """Return the mean cross entropy of finding a row's partner in the batch, and each row's."""
        scores = self.scores(state, live.values, *batch)
        losses = cross_entropy(scores, torch.arange(len(scores)), reduction="none")
        return losses.mean(), (losses.detach(),)

    def scores(
        self,
        state: CriticTrainingState,
        values: Sequence[Tensor],
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
    ) -> Float[Tensor, "row row"]:
        """Return ``g(x_i) . h(y_j) + c(y_j)``."""
        u, v = _standardised(x, state.x), _standardised(y, state.y)
        if self.hidden:
            u, v = relu(u @ values[0].T + values[1]), relu(v @ values[2].T + values[3])
        g, h = u @ values[-2].T, v @ values[-1].T
        return g @ h[:, :-1].T + h[:, -1]


def one_of_each(group: Int[Tensor, "row"], source: torch.Generator) -> Int[Tensor, "group"]:
    """Return the index of one random row of each group; groups are numbered from 0."""
    order = torch.randperm(len(group), generator=source)
    chosen = torch.zeros(int(group.max()) + 1, dtype=torch.int64)
    chosen[group[order]] = order
    return chosen


def _standardised(x: Float[Tensor, "row dim"], moments: MomentsState) -> Float[Tensor, "row dim"]:
    spread = moments.variance.sqrt()
    return ((x - moments.mean) / torch.where(spread > 0, spread, 1.0)).float()
