"""The training of ``DictLookup``: usual patches are to be retrieved, scrambled ones are not."""

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.state import size_bytes
from sonde.detect._lookup import KEY, VALUE, Generators, misfit, starting_weights
from sonde.detect.knn import to_unit_length
from sonde.stats import HashSample, HashSampleState
from sonde.stats.training import Examples, Trainer, TrainingState, generator
from sonde.stats.training_weights import LiveWeights

HINGE = 0.1
MARGIN = 0.25


@dataclass(frozen=True, kw_only=True)
class LookupTrainingState(TrainingState):
    """Weights of the maps, and the sample of patches that they look up in.

    The losses are the misfits of usual patches and of scrambled patches.
    """

    sample: HashSampleState | None = None


@final
@dataclass(frozen=True)
class LookupTraining(Trainer[LookupTrainingState]):
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
        return LookupTrainingState(weights=starting_weights(dim, self.hidden, self.seed))

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes with a full sample."""
        return size_bytes(self.start(dims[0])) + HashSample(self.m).size_bytes(*dims)

    def survey(
        self, state: LookupTrainingState, x: Tensor, *who: Tensor, **_: Any
    ) -> LookupTrainingState:
        """Sample patches to look up in."""
        sample = HashSample(self.m)
        seen = sample.observe(x.cpu(), *who)
        return replace(
            state, sample=seen if state.sample is None else sample.merge(state.sample, seen)
        )

    def examples(
        self,
        state: LookupTrainingState,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        group: Int[Tensor, "row"],
        group_draw: Int[Tensor, "row"],
    ) -> tuple[LookupTrainingState, Examples]:
        """Return patches and their images."""
        return state, Examples((x, group.to(x.device)))

    def loss(
        self, state: LookupTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
        """Return the loss of looking up patches and scrambled patches in other images."""
        if (sample := state.sample) is None:
            return None
        x, group = to_unit_length(batch[0]).float(), batch[1]
        source = generator("scrambled", self.seed, live.steps)
        drawn = torch.randperm(len(sample.rows), generator=source)[: self.batch].to(x.device)
        bank = to_unit_length(sample.rows[drawn]).to(x)
        others = group[:, None] != sample.group[drawn]
        known = others.any(1)
        x, others = x[known], others[known]
        if len(x) == 0:
            return None
        fakes, share = scrambled(x, source)
        both, others = torch.cat([x, fakes]), torch.cat([others, others])
        maps = Generators(tuple(live.values))
        held = maps(KEY, bank), maps(VALUE, bank)
        usual, odd = misfit(maps, both, *held, self.temperature, others).split(len(x))
        gap = 2 * (MARGIN * share + usual.mean() - odd).clamp(min=0).mean()
        return 2 * usual.mean() + HINGE * gap, (usual, odd)

    def close_pass(self, state: LookupTrainingState) -> LookupTrainingState:
        """Raise if the sample holds fewer than 2 groups (images)."""
        if state.sample is None or len(state.sample.group.unique()) < 2:
            raise InputError(
                "DictLookup: expected patches of at least 2 images (groups), got 1: in training a "
                "patch is looked up in those of other images, not in its own. Give more images, "
                "train on those of another kind (over), or take generators='identity'."
            )
        return super().close_pass(state)


def scrambled(
    x: Float[Tensor, "row dim"], source: torch.Generator
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row"]]:
    """Return unit patches blended with scrambled patches, and the scrambled share of each.

    Each unit of a scrambled patch has the value of another patch drawn at random: each unit is
    usual by itself, but the combination is not. The share is uniform in (0, 1).
    """
    rows = torch.randint(len(x), x.shape, generator=source).to(x.device)
    share = torch.rand(len(x), generator=source).to(x)
    return to_unit_length(torch.lerp(x, x.gather(0, rows), share[:, None])), share
