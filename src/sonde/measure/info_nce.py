"""Lower bound on two sites' mutual information: a critic identifies each row's partner.

For sites of many units, where neighbours (``mutual_information(estimator="ksg")``) fall short. The
bound cannot exceed the logarithm of the batch size. For labels, see ``v_information``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.result import Direction, Result
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState, Moments, MomentsState
from sonde.stats.halves import random_halves
from sonde.stats.sampled_rows import SampledRows
from sonde.stats.training import Examples, Trainer, TrainingState, generator, xavier
from sonde.stats.training_weights import LiveWeights, Weights

HELD = 5
PATIENCE = 10


@dataclass(frozen=True, kw_only=True)
class CriticTrainingState(TrainingState):
    """State of a training run; the first pass computes mean and deviation of both sites' units."""

    x: MomentsState
    y: MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class CriticTraining(Trainer[CriticTrainingState]):
    """Training of ``InfoNCE``, which documents the parameters.

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
        """Return an initial critic that scores all pairs equally."""
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
        """Compute the mean and standard deviation of each unit."""
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
        """Return one row of each group; every pass holds out the same groups."""
        chosen = one_of_each(group, generator("walk", self.seed, state.walks))
        order = torch.randperm(len(chosen), generator=generator("held", self.seed))
        held = order < max(2, len(chosen) // HELD)
        return state, Examples((x[chosen], y[chosen]), held)

    def loss(
        self, state: CriticTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Tensor, tuple[Tensor]]:
        """Return the mean cross-entropy of identifying partners in the batch, and each row's."""
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
    """Return the index of a random row of each group; groups are numbered from 0."""
    order = torch.randperm(len(group), generator=source)
    chosen = torch.zeros(int(group.max()) + 1, dtype=torch.int64)
    chosen[group[order]] = order
    return chosen


def _standardised(x: Float[Tensor, "row dim"], moments: MomentsState) -> Float[Tensor, "row dim"]:
    spread = moments.variance.sqrt()
    return ((x - moments.mean) / torch.where(spread > 0, spread, 1.0)).float()


NULLS = 3
ROUNDS = 8
NEAR = 0.8
LEAST = 8


@final
@dataclass(frozen=True, kw_only=True)
class InfoNCEResult(Result):
    """A lower bound in nats that never exceeds ``limit``, the logarithm of the batch."""

    direction: Direction = "higher"
    unit: str = "nats"
    limit: float


@final
@dataclass(frozen=True)
class InfoNCE(PairSampleInstrument):
    """Contrastive lower bound on the mutual information of two sites, in nats.

    A critic ``f(x, y) = g(x) . h(y) + c(y)`` learns to find a row's partner at the second site
    among rows of ``B - 1`` other groups. The value is the mean over held-out rows of
    ``ln B + f_ii - ln sum_j exp f_ij``. Each half of the groups trains a critic that is judged on
    the other half.

    Range        (-inf, ln B], nats; ``limit`` is ``ln B``, and a value from 0.8 of it on is flagged
                 ``saturated``: the information may be any larger. Below 0 where the critic
                 overfits; higher = more dependent.
    Cost         one pass; state ``m`` rows of each site; result eight trainings of the critic.
    Assumes      at least 16 groups. With fewer than two batches of groups ``B`` gets smaller; with
                 fewer groups in a half than units the critic is blind (flag ``few_rows``). A
                 negative always comes from another group. The error holds for the critics as
                 trained.
    Differs      from the paper: two sites in place of the steps of a sequence, held-out groups.

    Parameters
    ----------
    batch : int, default=128
        Rows among which the partner is found, ``B``.
    hidden : int, default=128
        Width of the hidden layers of ``g``, ``h`` and ``c``; 0: a bilinear critic, blind to
        dependence without correlation.
    embedding : int, default=32
        Numbers that ``g`` and ``h`` return.
    passes : int, default=100
        Most walks over the groups of a half; a fifth of the groups is held out to stop the
        training.
    rate : float, default=0.002
        Step size.
    seed : int, default=0
        Seed of the initial weights, of the order of rows and of the batches.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> x, y = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(0))
    >>> found = info_nce(x, x + y, batch=16, hidden=0)
    >>> 0.3 < found.value < found.limit
    True

    References
    ----------
    oord2018cpc, poole2019bounds
    """

    batch: int = 128
    hidden: int = 128
    embedding: int = 32
    passes: int = 100
    rate: float = 0.002
    seed: int = 0
    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "oord2018cpc"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"batch": 8, "hidden": 4, "passes": 3, "m": 64},
        {"batch": 4, "hidden": 0, "embedding": 2, "passes": 3, "m": 64},
    )

    def __post_init__(self) -> None:
        least = min(self.batch - 1, self.embedding, self.passes, self.m)
        if least < 1 or self.hidden < 0 or not 0.0 < self.rate < math.inf:
            raise InputError(
                "InfoNCE: expected a batch of at least 2, embedding, passes and m of at least 1, "
                f"hidden of at least 0 and rate above 0, got {self}."
            )

    def result(self, samples: tuple[HashSampleState, HashSampleState]) -> InfoNCEResult:
        """Train on each half of the groups and test on the other."""
        rows = SampledRows.of(samples)
        rows = replace(rows, rows=tuple(x.cpu() for x in rows.rows))
        size = min(self.batch, rows.n_groups // 2)
        dead = any(not bool((x != x[:1]).any()) for x in rows.rows)
        raised_flags = {
            "dead": dead,
            "few_rows": rows.n_groups
            < 2 * max(LEAST, self.batch, *(x.shape[1] for x in rows.rows)),
        }
        terms = torch.full((1,), math.nan, dtype=torch.float64)
        null = math.nan
        if not dead and rows.n_groups >= 2 * LEAST:
            terms = self._terms(rows, size)
            others = [self._terms(other, size) for other in rows.shuffled(n=NULLS)]
            null = float(torch.stack([other.mean() for other in others]).mean())
        value, limit = float(terms.mean()), math.log(size) if size else math.nan
        raised_flags["saturated"] = value > NEAR * limit
        has_error = len(terms) > 1
        return InfoNCEResult(
            value=value,
            se=terms.std() / math.sqrt(len(terms)) if has_error else None,
            null=null,
            n=rows.n_groups,
            range=(-math.inf, limit),
            flags=(*rows.flags, *(flag for flag, raised in raised_flags.items() if raised)),
            conventions={
                "critic": "separable" if self.hidden else "bilinear",
                "batch": size,
                "limit": "ln batch",
                "null": f"{NULLS} training runs on shuffles of groups",
                "se": "standard deviation over held-out groups" if has_error else "no value",
            },
            limit=limit,
        )

    def _terms(self, rows: SampledRows, size: int) -> Float[Tensor, "group"]:
        """Return each group's term of the value, by the other half's critic."""
        half = random_halves(rows.group, n_halves=1, seed=self.seed)[0]
        first, second = rows.take(half), rows.take(~half)
        pairs = (first, second), (second, first)
        return torch.cat([self._judged(reference, other, size) for reference, other in pairs])

    def _judged(self, known: SampledRows, rows: SampledRows, size: int) -> Float[Tensor, "group"]:
        """Train on known rows; return the mean term of each remaining group.

        A batch holds one row of each of several groups.
        """
        training, state = self._trained(known)
        values = (state.best or state.weights).values
        source = generator("judged", self.seed)
        total = torch.zeros(rows.n_groups, dtype=torch.float64)
        count = torch.zeros_like(total)
        for _ in range(ROUNDS):
            chosen = one_of_each(rows.group, source)
            for part in chosen[torch.randperm(len(chosen), generator=source)].split(size):
                if len(part) == size:
                    scores = training.scores(state, values, *(x[part] for x in rows.rows))
                    which = rows.group[part]
                    total[which] += math.log(size) + scores.double().log_softmax(1).diagonal()
                    count[which] += 1
        return (total / count)[count > 0]

    def _trained(self, rows: SampledRows) -> tuple[CriticTraining, CriticTrainingState]:
        x, y = rows.rows
        training = CriticTraining(
            dim2=y.shape[1],
            hidden=self.hidden,
            embedding=self.embedding,
            passes=self.passes,
            batch=self.batch,
            rate=self.rate,
            seed=self.seed,
        )
        state = training.start(x.shape[1])
        while not training.is_trained(state):
            state = training.close_pass(training.update(state, x, y, rows.group))
        state.require_trained("InfoNCE")
        return training, state


info_nce = as_function(InfoNCE)
