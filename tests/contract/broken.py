"""Broken twins: each breaks one law, which must notice."""

import math
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.finite import finite_rows
from sonde.core.hashing import fraction
from sonde.core.instrument import Detector, Instrument
from sonde.core.result import Result, Scorer
from sonde.core.state import State
from sonde.core.statistic import Learner, Merging, Statistic
from sonde.stats import (
    ClassMoments,
    ClassMomentsState,
    GroupedHsicSums,
    GroupedHsicSumsState,
    HashSample,
    HashSampleState,
    Histogram,
    HistogramState,
    Moments,
    MomentsState,
    Quantiles,
    QuantilesState,
)

_MOMENTS = Moments()


@dataclass(frozen=True)
class _LikeMoments(Statistic[MomentsState]):
    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        return _MOMENTS.observe(x)

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        return _MOMENTS.merge(a, b)


@final
@dataclass(frozen=True)
class AddsMeans(_LikeMoments):
    """Averages two means without their counts."""

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        return replace(_MOMENTS.merge(a, b), mean=(a.mean + b.mean) / 2)


@final
@dataclass(frozen=True)
class OtherUpdate(_LikeMoments):
    """Forgets the count on its fast path."""

    def update(self, state: MomentsState, x: Float[Tensor, "row dim"]) -> MomentsState:
        return replace(self.merge(state, self.observe(x)), n=state.n)


@final
@dataclass(frozen=True)
class ChangesOperand(_LikeMoments):
    """Adds into its left operand."""

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        merged = _MOMENTS.merge(a, b)
        a.mean.copy_(merged.mean)
        return merged


@final
@dataclass(frozen=True)
class ChangesRows(_LikeMoments):
    """Centres the rows that it was given in place."""

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        state = _MOMENTS.observe(x.clone())
        x -= state.mean.to(x)
        return state


@final
@dataclass(frozen=True)
class RawSquares(_LikeMoments):
    """Subtracts squares of large means in the type of the rows."""

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        mean = x.mean(0)
        scatter = x.T @ x - len(x) * torch.outer(mean, mean)
        return MomentsState(len(x), mean.double(), scatter.double())


@final
@dataclass(frozen=True)
class HalfSums(_LikeMoments):
    """Adds half-precision rows in half precision."""

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        state = _MOMENTS.observe(x)
        return replace(state, mean=x.sum(0).double() / len(x))


@final
@dataclass(frozen=True)
class NanOfOneRow(_LikeMoments):
    """Divides by n - 1."""

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        state = _MOMENTS.observe(x)
        return replace(state, scatter=state.scatter * torch.tensor(len(x) - 1.0).div(len(x) - 1))


@final
@dataclass(frozen=True)
class HalfInfluence(_LikeMoments):
    """Forgets the mean."""

    def influence(
        self, state: MomentsState, gradient: MomentsState, x: Float[Tensor, "row dim"]
    ) -> Float[Tensor, "row"]:
        z = x.to(state.mean) - state.mean
        return ((z @ gradient.scatter) * z).sum(1)


@dataclass(frozen=True)
class RowsState(State):
    rows: Tensor


@final
@dataclass(frozen=True)
class KeepsRows(Statistic[RowsState]):
    """Keeps all rows."""

    def observe(self, x: Float[Tensor, "row dim"]) -> RowsState:
        return RowsState(x.clone())

    def merge(self, a: RowsState, b: RowsState) -> RowsState:
        return RowsState(torch.cat([a.rows, b.rows]))


@final
@dataclass(frozen=True)
class IndexSample(Statistic[HashSampleState]):
    """A sample that keys by the row's index in its batch instead of its draw."""

    def observe(self, x: Float[Tensor, "row dim"], group: Int[Tensor, "row"]) -> HashSampleState:
        draw = torch.arange(len(x)) * 7919 % 1009
        return HashSample(8).observe(x, draw, group, group)

    def merge(self, a: HashSampleState, b: HashSampleState) -> HashSampleState:
        return HashSample(8).merge(a, b)


@final
@dataclass(frozen=True)
class SplitsGroups(Statistic[GroupedHsicSumsState]):
    """Needs whole groups and does not say so."""

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
        group: Int[Tensor, "row"],
    ) -> GroupedHsicSumsState:
        return GroupedHsicSums().observe(x, y, group)

    def merge(self, a: GroupedHsicSumsState, b: GroupedHsicSumsState) -> GroupedHsicSumsState:
        return GroupedHsicSums().merge(a, b)


@final
@dataclass(frozen=True)
class BoastsOfItsBound(Statistic[QuantilesState]):
    """States a hundredth of the bound."""

    merging: ClassVar[Merging] = "bounded"

    def observe(self, x: Float[Tensor, "row dim"]) -> QuantilesState:
        return Quantiles(8).observe(x)

    def merge(self, a: QuantilesState, b: QuantilesState) -> QuantilesState:
        return Quantiles(8).merge(a, b)

    def bound(self, state: QuantilesState) -> float:
        return Quantiles(8).bound(state) / 100


@dataclass(frozen=True)
class LooseState(State):
    kept: Any


@final
@dataclass(frozen=True)
class UntypedState(Statistic[LooseState]):
    """Has a state whose fields no reader can be told."""

    def observe(self, x: Float[Tensor, "row dim"]) -> LooseState:
        return LooseState({"mean": float(x.mean())})

    def merge(self, a: LooseState, b: LooseState) -> LooseState:
        return a


@final
@dataclass(frozen=True, eq=False)
class OtherState(Statistic[HistogramState]):
    """Returns another state than it names."""

    def observe(self, x: Float[Tensor, "row dim"]) -> HistogramState:
        return _MOMENTS.observe(x)  # type: ignore[return-value]

    def merge(self, a: HistogramState, b: HistogramState) -> HistogramState:
        return Histogram(torch.zeros(1)).merge(a, b)


@final
@dataclass(frozen=True)
class Unseeded(Learner[RowsState]):
    """Starts from the global random state."""

    def start(self, dim: int) -> RowsState:
        return RowsState(torch.randn(dim))

    def update(self, state: RowsState, x: Float[Tensor, "row dim"]) -> RowsState:
        return RowsState(state.rows + torch.randn(state.rows.shape).to(state.rows))


@final
@dataclass(frozen=True)
class MergingLearner(Learner[RowsState]):
    """Averages two trained states."""

    def start(self, dim: int) -> RowsState:
        return RowsState(torch.zeros(dim, dtype=torch.float64))

    def update(self, state: RowsState, x: Float[Tensor, "row dim"]) -> RowsState:
        return RowsState(state.rows + x.double().mean(0))

    def merge(self, a: RowsState, b: RowsState) -> RowsState:
        return RowsState((a.rows + b.rows) / 2)


@dataclass(frozen=True)
class RowSplit:
    """Holds rows out by their own hash instead of their group's."""

    held: float

    def is_held(self, draw: Int[Tensor, "row"]) -> Bool[Tensor, "row"]:
        return fraction(draw) < self.held


@dataclass(frozen=True)
class _OfMoments(Instrument):
    def reads(self) -> dict[str, Statistic[Any]]:
        return {"moments": Moments()}

    def result(self, moments: MomentsState) -> Result:
        return Result(value=moments.mean.sum(), n=moments.n)


@final
@dataclass(frozen=True)
class SwallowsNan(_OfMoments):
    """Gives NaN for constant rows without a flag."""

    def result(self, moments: MomentsState) -> Result:
        return Result(value=moments.variance.sum() * 0 / moments.variance.sum(), n=moments.n)


@final
@dataclass(frozen=True)
class WithoutCount(_OfMoments):
    """Does not say how many rows it saw."""

    def result(self, moments: MomentsState) -> Result:
        return Result(value=moments.mean.sum())


@final
@dataclass(frozen=True)
class OfTheFirstClass(Instrument):
    """Takes for granted that a class was seen."""

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"classes": ClassMoments("trace")}

    def result(self, classes: ClassMomentsState) -> Result:
        return Result(value=classes.mean[0].sum(), n=int(classes.n.sum()))


@dataclass(frozen=True)
class FirstRowState(State):
    row: Tensor
    n: int


@final
@dataclass(frozen=True)
class FirstRow(Statistic[FirstRowState]):
    """Keeps the first row that it sees."""

    def observe(self, x: Float[Tensor, "row dim"]) -> FirstRowState:
        return FirstRowState(x[0].clone(), len(x))

    def merge(self, a: FirstRowState, b: FirstRowState) -> FirstRowState:
        return FirstRowState(a.row, a.n + b.n)


@final
@dataclass(frozen=True)
class AsksTheFirstRow(Instrument):
    """Depends on the order of the rows."""

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"first": FirstRow()}

    def result(self, first: FirstRowState) -> Result:
        return Result(value=first.row.double().sum(), n=first.n)


@final
@dataclass(frozen=True)
class CountsRows(_OfMoments):
    """Takes every row for an independent one."""

    def result(self, moments: MomentsState) -> Result:
        error = (moments.variance[0] / moments.n).detach().sqrt()
        return Result(value=moments.mean[0], se=error, n=moments.n)


@final
@dataclass(frozen=True)
class Rolls(_OfMoments):
    """Uses the global random state."""

    def result(self, moments: MomentsState) -> Result:
        return Result(value=float(torch.rand(())), n=moments.n)


_CALLS = count()


@final
@dataclass(frozen=True)
class Counting(Statistic[MomentsState]):
    """Counts how often any of its kind was asked."""

    tag: int = 0

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        return replace(_MOMENTS.observe(x), n=next(_CALLS) + 1)

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        return _MOMENTS.merge(a, b)


@final
@dataclass(frozen=True)
class HearsOthers(Instrument):
    """Depends on what else ran."""

    tag: int = 0

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"moments": Counting(self.tag)}

    def result(self, moments: MomentsState) -> Result:
        return Result(value=float(moments.n), n=moments.n)


@final
@dataclass(frozen=True)
class IgnoresFirstPass(_OfMoments):
    """Asks the same in its second pass whatever the first one found."""

    def then(self, result: Result) -> Instrument:
        return Rolls()


@final
@dataclass(frozen=True, kw_only=True)
class DistanceScorer(Scorer):
    """Distance to a mean, broken in one named way."""

    mean: Float[Tensor, "dim"]
    fault: str = field(default="")

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        out = (x.double() - self.mean).norm(dim=1)
        if self.fault == "batch":
            out = out / out.max()
        if self.fault == "flipped":
            out = -out
        if self.fault == "nan":
            return out
        return out.masked_fill(~finite_rows(x), math.inf)


@final
@dataclass(frozen=True)
class Distance(Detector):
    """A detector with a fault in its scorer; none by default."""

    fault: str = ""

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"moments": Moments("diag")}

    def result(self, moments: MomentsState) -> DistanceScorer:
        return DistanceScorer(mean=moments.mean, fault=self.fault, n=moments.n)
