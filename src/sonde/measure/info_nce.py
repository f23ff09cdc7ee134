"""Lower bound on the mutual information of two sites: a critic finds a row's partner.

For sites of many units, where neighbours (``mutual_information(estimator="ksg")``) fall short. The
bound cannot exceed the logarithm of the batch size. For labels, see ``v_information``.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.result import Direction, Result
from sonde.measure._critic_training import CriticTraining, CriticTrainingState, one_of_each
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState
from sonde.stats.halves import random_halves
from sonde.stats.sampled_rows import SampledRows
from sonde.stats.training import generator

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
        Of weights, order and batches.
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
        """Train on each half of the groups and judge on the other."""
        rows = SampledRows.of(samples)
        rows = replace(rows, rows=tuple(x.cpu() for x in rows.rows))
        size = min(self.batch, rows.n_groups // 2)
        dead = any(not bool((x != x[:1]).any()) for x in rows.rows)
        found = {
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
        found["saturated"] = value > NEAR * limit
        known = len(terms) > 1
        return InfoNCEResult(
            value=value,
            se=terms.std() / math.sqrt(len(terms)) if known else None,
            null=null,
            n=rows.n_groups,
            range=(-math.inf, limit),
            flags=(*rows.flags, *(flag for flag, raised in found.items() if raised)),
            conventions={
                "critic": "separable" if self.hidden else "bilinear",
                "batch": size,
                "limit": "ln batch",
                "null": f"{NULLS} trainings on shuffles of groups",
                "se": "spread over held-out groups" if known else "no value",
            },
            limit=limit,
        )

    def _terms(self, rows: SampledRows, size: int) -> Float[Tensor, "group"]:
        """Return what each group adds to the value, judged by the critic of the other half."""
        half = random_halves(rows.group, n_halves=1, seed=self.seed)[0]
        first, second = rows.take(half), rows.take(~half)
        pairs = (first, second), (second, first)
        return torch.cat([self._judged(known, other, size) for known, other in pairs])

    def _judged(self, known: SampledRows, rows: SampledRows, size: int) -> Float[Tensor, "group"]:
        """Train on known rows; return the mean term of each group of the others.

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
