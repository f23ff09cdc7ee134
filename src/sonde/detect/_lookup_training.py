"""The training of ``DictLookup``: usual patches are to be retrieved, scrambled ones are not."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, StateError
from sonde.core.finite import finite_entries
from sonde.core.state import State, map_tensors, size_bytes
from sonde.core.statistic import Learner
from sonde.detect._lookup import KEY, VALUE, Generators, misfit, starting_weights
from sonde.detect._training import Tally, Weights, generator, minibatches
from sonde.detect.knn import unit_rows
from sonde.stats import HashSample, HashSampleState

HINGE = 0.1
MARGIN = 0.25


@dataclass(frozen=True)
class LookupTrainingState(State):
    """Weights of the maps, what they look up in, and how patches were retrieved in a walk.

    ``walks`` are done, the first one for ``sample``.
    """

    walks: int
    sample: HashSampleState | None
    weights: Weights
    usual: Tally
    scrambled: Tally


@final
@dataclass(frozen=True)
class LookupTraining(Learner[LookupTrainingState]):
    """The training of ``DictLookup``; its parameters are described there."""

    m: int
    temperature: float
    hidden: int
    passes: int
    batch: int
    rate: float
    seed: int

    def start(self, dim: int) -> LookupTrainingState:
        """Return maps that change nothing."""
        weights = starting_weights(dim, self.hidden, self.seed)
        return LookupTrainingState(0, None, weights, Tally(), Tally())

    def n_passes(self) -> int:
        """Return one walk for the patches to look up in, then those of the training."""
        return 1 + self.passes

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes with a full sample."""
        return size_bytes(self.start(dims[0])) + HashSample(self.m).size_bytes(*dims)

    def update(
        self,
        state: LookupTrainingState,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        group: Int[Tensor, "row"],
        group_draw: Int[Tensor, "row"],
    ) -> LookupTrainingState:
        """Sample patches in the first walk, then look patches up in those of other images."""
        if state.walks == 0:
            seen = HashSample(self.m).observe(x.cpu(), draw, group, group_draw)
            known = state.sample
            return replace(
                state, sample=seen if known is None else HashSample(self.m).merge(known, seen)
            )
        state = replace(state, weights=map_tensors(state.weights, lambda t: t.to(x.device)))
        source = generator("order", self.seed, state.weights.steps)
        for rows in minibatches(len(x), self.batch, source):
            state = self._stepped(state, unit_rows(x[rows.to(x.device)]).float(), group[rows])
        return state

    def _stepped(
        self, state: LookupTrainingState, x: Float[Tensor, "row dim"], group: Int[Tensor, "row"]
    ) -> LookupTrainingState:
        if (sample := state.sample) is None:
            return state
        source = generator("scrambled", self.seed, state.weights.steps)
        drawn = torch.randperm(len(sample.rows), generator=source)[: self.batch]
        bank = unit_rows(sample.rows[drawn]).to(x)
        others = (group[:, None] != sample.group[drawn]).to(x.device)
        known = others.any(1)
        x, others = x[known], others[known]
        if len(x) == 0:
            return state
        fakes, share = scrambled(x, source)
        both, others = torch.cat([x, fakes]), torch.cat([others, others])
        with torch.enable_grad():
            live = state.weights.live()
            maps = Generators(tuple(live))
            held = maps(KEY, bank), maps(VALUE, bank)
            usual, odd = misfit(maps, both, *held, self.temperature, others).split(len(x))
            gap = 2 * (MARGIN * share + usual.mean() - odd).clamp(min=0).mean()
            gradients = torch.autograd.grad(2 * usual.mean() + HINGE * gap, live)
        weights = state.weights.stepped(gradients, self.rate)
        if not all(bool(finite_entries(w).all()) for w in weights.values):
            raise StateError("DictLookup: the training diverged. Take a smaller rate.")
        return replace(
            state,
            weights=weights,
            usual=state.usual.plus(float(usual.detach().sum()), len(x)),
            scrambled=state.scrambled.plus(float(odd.detach().sum()), len(x)),
        )

    def close_pass(self, state: LookupTrainingState) -> LookupTrainingState:
        """Refuse data of one group, and begin to count anew."""
        if state.sample is None or len(state.sample.group.unique()) < 2:
            raise InputError(
                "DictLookup: expected patches of at least 2 images (groups), got 1: in training a "
                "patch is looked up in those of other images, not in its own. Give more images, "
                "train on those of another kind (over), or take generators='identity'."
            )
        done = state.walks == self.passes
        state = replace(state, walks=state.walks + 1)
        return state if done else replace(state, usual=Tally(), scrambled=Tally())


def scrambled(
    x: Float[Tensor, "row dim"], source: torch.Generator
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row"]]:
    """Return unit patches blended with what no usual patch is, and the share of that in each.

    Blended in is a patch whose every unit has the value of another patch drawn at random: each unit
    is as usual by itself, and only together they are not. The share is even in (0, 1).
    """
    rows = torch.randint(len(x), x.shape, generator=source).to(x.device)
    share = torch.rand(len(x), generator=source).to(x)
    return unit_rows(torch.lerp(x, x.gather(0, rows), share[:, None])), share
