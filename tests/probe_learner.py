"""A learner of the tests: a logistic probe trained by minibatches in plan order, seeded."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.state import State
from sonde.core.statistic import Learner, Statistic


@final
@dataclass(frozen=True, eq=False)
class ProbeState(State):
    weight: Float[Tensor, "dim"]
    bias: Float[Tensor, ""]
    steps: int


@final
@dataclass(frozen=True)
class ProbeSteps(Learner[ProbeState]):
    rate: float = 0.1
    batch: int = 16
    seed: int = 0
    passes: int = 1

    def n_passes(self) -> int:
        return self.passes

    def start(self, dim: int) -> ProbeState:
        generator = torch.Generator().manual_seed(self.seed)
        weight = 0.01 * torch.randn(dim, generator=generator, dtype=torch.float64)
        return ProbeState(weight, torch.zeros((), dtype=torch.float64), 0)

    def update(
        self, state: ProbeState, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"]
    ) -> ProbeState:
        weight, bias, steps = state.weight.clone(), state.bias.clone(), state.steps
        for first in range(0, len(x), self.batch):
            rows, wanted = (
                x[first : first + self.batch].double(),
                label[first : first + self.batch].double(),
            )
            gap = torch.sigmoid(rows @ weight + bias) - wanted
            weight -= self.rate * (gap @ rows) / len(rows)
            bias -= self.rate * gap.mean()
            steps += 1
        return ProbeState(weight, bias, steps)


@final
@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    weight: Float[Tensor, "dim"]


@final
@dataclass(frozen=True)
class MinibatchProbe(Instrument):
    """Which side of a plane two classes lie on, learnt by steps."""

    rate: float = 0.1
    passes: int = 1
    examples: ClassVar = ({},)

    def reads(self) -> dict[str, Statistic]:
        return {"trained": ProbeSteps(self.rate, passes=self.passes)}

    def result(self, trained: ProbeState) -> ProbeResult:
        return ProbeResult(value=float(trained.steps), n=trained.steps, weight=trained.weight)
