"""Broken twins of shifts, of edits, and of methods that read the rows of an example together."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contract.broken import AddsMeans, FirstRow
from sonde.core import (
    Comparison,
    Edit,
    EditContext,
    Instrument,
    Result,
    Shift,
    Side,
    Site,
    State,
    Statistic,
)
from sonde.stats import Moments
from sonde.tap import Decode, DecodeContext, OtherLogits


@final
@dataclass(frozen=True)
class OfMeans(Shift):
    """Says the same whatever it is given, or has the named fault."""

    fault: str = ""
    value: float = 1.0
    p: float = 0.5

    def reads(self) -> dict[str, Statistic[Any]]:
        if self.fault == "first row":
            return {"moments": FirstRow()}
        return {"moments": AddsMeans() if self.fault == "merge" else Moments()}

    def compare(self, first: Side, second: Side) -> Comparison:
        value, p = self.value, self.p
        states: list[Any] = [side.states["moments"] for side in (first, second)]
        if self.fault == "merge":
            value = float(torch.dist(*(s.mean for s in states)))
        elif self.fault == "first row":
            value = float(torch.dist(*(s.row for s in states)))
        elif self.fault == "random":
            p = float(torch.rand(()))
        elif self.fault == "nan p":
            p = math.nan
        elif self.fault == "nan value":
            value = math.nan
        return Comparison(value=value, p=p, sides=(first.n, second.n), n=first.n)


@final
@dataclass(frozen=True)
class Shifts(Edit):
    """Adds one; ``fault`` says how it is broken."""

    fault: str = ""
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        if self.strength == 0.0 and self.fault != "copies":
            return x
        if self.fault == "in place":
            return x.add_(self.strength)
        if self.fault == "shape":
            return (x + self.strength).flatten(1)
        if self.fault == "widens":
            return x.double() + self.strength
        if self.fault == "batch":
            return x + self.strength * x.mean(0)
        if self.fault == "random":
            return x + self.strength * torch.rand(())
        if self.fault == "looks at padding":
            return x + self.strength * x.mean(-2, keepdim=True)
        if self.fault == "rounds float32" and x.dtype == torch.float32:
            return (x.bfloat16() + self.strength).to(x)
        if self.fault == "draws":
            return x + self.strength * (1 + 0 * torch.rand(()))
        if self.fault == "first place":
            return torch.cat((-self.strength * x[..., :1, :], x[..., 1:, :]), dim=-2)
        return x + self.strength


@final
@dataclass(frozen=True)
class Sharpens(Decode):
    """Doubles the log-probabilities; ``fault`` says how it is broken."""

    fault: str = ""
    strength: float = 1.0
    seen: list[int] = field(default_factory=list, compare=False, repr=False)

    def reads(self) -> dict[str, OtherLogits]:
        return {"early": OtherLogits(layer=0)}

    def step(self, logits: Tensor, context: DecodeContext) -> Tensor:
        if self.strength == 0.0 and self.fault != "copies":
            return logits
        found = (1 + self.strength) * logits.log_softmax(1)
        self.seen.append(len(logits))
        if self.fault == "in place":
            return logits.mul_(1 + self.strength)
        if self.fault == "empty":
            return torch.full_like(logits, -math.inf)
        if self.fault == "logits":
            return logits * (context.others["early"] > 0)
        if self.fault == "batch":
            return found * logits.mean().exp()
        if self.fault == "remembers":
            return found + 5.0 * (torch.arange(found.shape[1]) % 7 == len(self.seen) % 7)
        if self.fault == "random":
            return found + torch.rand(found.shape)
        return found


@dataclass(frozen=True)
class StepsState(State):
    total: Tensor
    n: int


@final
@dataclass(frozen=True)
class Steps(Statistic[StepsState]):
    """Sums the lengths of the steps between neighbouring rows of an example."""

    whole_examples: ClassVar[bool] = True

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        example: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
    ) -> StepsState:
        rows = sorted(range(len(x)), key=lambda i: (int(example[i]), int(position[i])))
        x, example = x[rows].double(), example[rows]
        inside = example[1:] == example[:-1]
        steps = (x[1:] - x[:-1]).norm(dim=1)[inside]
        return StepsState(steps.sum(), len(x))

    def merge(self, a: StepsState, b: StepsState) -> StepsState:
        return StepsState(a.total + b.total, a.n + b.n)


@final
@dataclass(frozen=True)
class CutSteps(Statistic[StepsState]):
    """The same, and does not say that it needs whole examples."""

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        example: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
    ) -> StepsState:
        return Steps().observe(x, example, position)

    def merge(self, a: StepsState, b: StepsState) -> StepsState:
        return Steps().merge(a, b)


@final
@dataclass(frozen=True)
class StepsAsTheyCome(Statistic[StepsState]):
    """Takes the first row of an example for the next one of the example before it."""

    whole_examples: ClassVar[bool] = True

    def observe(self, x: Float[Tensor, "row dim"]) -> StepsState:
        return StepsState((x[1:] - x[:-1]).double().norm(dim=1).sum(), len(x))

    def merge(self, a: StepsState, b: StepsState) -> StepsState:
        return Steps().merge(a, b)


@final
@dataclass(frozen=True)
class StepsByRow(Statistic[StepsState]):
    """Knows the example of a row, and takes its rows as they come."""

    whole_examples: ClassVar[bool] = True

    def observe(self, x: Float[Tensor, "row dim"], example: Int[Tensor, "row"]) -> StepsState:
        return Steps().observe(x, example, torch.arange(len(x)))

    def merge(self, a: StepsState, b: StepsState) -> StepsState:
        return Steps().merge(a, b)


@final
@dataclass(frozen=True)
class PathLength(Instrument):
    """Mean length of the path of an example's rows."""

    steps: Statistic[StepsState] = field(default_factory=Steps)

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"steps": self.steps}

    def result(self, steps: StepsState) -> Result:
        return Result(value=steps.total / max(steps.n, 1), n=steps.n)


@final
@dataclass(frozen=True)
class PathRatio(Instrument):
    """How many times longer the paths at the second site are."""

    span: ClassVar[Any] = "pair"

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"steps": Steps()}

    def result(self, steps: tuple[StepsState, StepsState]) -> Result:
        first, second = (s.total for s in steps)
        if float(first) <= 0 or not math.isfinite(float(second)):
            return Result(value=math.nan, n=steps[0].n, flags=("dead",))
        return Result(value=second / first, n=steps[0].n)
