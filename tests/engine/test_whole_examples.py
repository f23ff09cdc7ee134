"""A measure whose statistic needs whole examples gets them, however many rows a unit has."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core import InputError, Instrument, Result, State, Statistic, Stream
from sonde.run.fitting.fit import fit
from sonde.stats.sequences import by_example
from sonde.store import Cleared, Store, append_store, write_store


@dataclass(frozen=True)
class LengthsState(State):
    """How many examples came, and how many rows the shortest had."""

    n: int
    shortest: int


@dataclass(frozen=True)
class Lengths(Statistic[LengthsState]):
    """The rows of each example, which arrive together."""

    whole_examples: ClassVar[bool] = True

    def observe(self, x: Float[Tensor, "row dim"], group: Int[Tensor, "row"]) -> LengthsState:
        """Return the counts of a batch."""
        counts = torch.unique(group, return_counts=True)[1]
        return LengthsState(len(counts), int(counts.min()))

    def merge(self, a: LengthsState, b: LengthsState) -> LengthsState:
        """Return the counts of both."""
        return LengthsState(a.n + b.n, min(a.shortest, b.shortest))


@dataclass(frozen=True)
class ShortestExample(Instrument):
    """Rows of the shortest example."""

    def reads(self):
        """Read the lengths."""
        return {"lengths": Lengths()}

    def result(self, lengths: LengthsState) -> Result:
        """Return the shortest."""
        return Result(value=float(lengths.shortest), n=lengths.n)


@pytest.mark.truth("how the rows were made: 700 examples of 7 rows")
@pytest.mark.parametrize("dim", [2, 300])
def test_no_example_is_cut(dim):
    ids = [f"example {i // 7}" for i in range(4900)]
    stream = Stream.of(torch.zeros(4900, dim), ids=ids, group=ids, position=torch.arange(4900) % 7)
    fitted = fit(ShortestExample(), stream, calibrate=0, unit_size=4900, progress=False)
    found = fitted.result(ShortestExample)
    assert (found.n, found.value) == (700, 7.0)


@dataclass(frozen=True)
class StepsState(State):
    """The length of all steps, and of how many examples."""

    total: Tensor
    n: int


@dataclass(frozen=True)
class Steps(Statistic[StepsState]):
    """Lengths of the steps from a row to the next one of its example."""

    whole_examples: ClassVar[bool] = True

    def observe(
        self, x: Float[Tensor, "row dim"], example: Int[Tensor, "row"], position: Int[Tensor, "row"]
    ) -> StepsState:
        """Return the sum over the examples of a batch."""
        found = by_example(example, position)
        steps = x[found.rows].double().diff(dim=0).norm(dim=1)
        return StepsState(steps[found.continues[1:]].sum(), len(found.example))

    def merge(self, a: StepsState, b: StepsState) -> StepsState:
        """Return the sums of both."""
        return StepsState(a.total + b.total, a.n + b.n)


@dataclass(frozen=True)
class StepsByOrder(Statistic[StepsState]):
    """The same by the column ``order``, which numbers the rows of plain arrays."""

    whole_examples: ClassVar[bool] = True

    def observe(
        self, x: Float[Tensor, "row dim"], order: Int[Tensor, "row"], position: Int[Tensor, "row"]
    ) -> StepsState:
        """Return the sum over the examples of a batch."""
        return Steps().observe(x, order, position)

    def merge(self, a: StepsState, b: StepsState) -> StepsState:
        """Return the sums of both."""
        return Steps().merge(a, b)


@dataclass(frozen=True)
class PathLength(Instrument):
    """Mean length of the path of an example's rows."""

    steps: Statistic[StepsState] = Steps()

    def reads(self):
        """Read the steps."""
        return {"steps": self.steps}

    def result(self, steps: StepsState) -> Result:
        """Return the mean."""
        return Result(value=steps.total / steps.n, n=steps.n)


@pytest.mark.truth("a loop over the examples, whose rows are mixed")
def test_rows_of_one_example_share_a_number_in_arrays_and_stores(tmp_path):
    made = torch.Generator().manual_seed(0)
    x = torch.randn(2800, 3, generator=made)
    example, position = torch.arange(2800) // 7, torch.arange(2800) % 7
    truth = sum(float(x[example == e].double().diff(dim=0).norm(dim=1).sum()) for e in range(400))
    mixed = torch.randperm(2800, generator=made)
    ids = [f"example {e}" for e in example[mixed].tolist()]
    stream = Stream.of(x[mixed], ids=ids, position=position[mixed])
    found = fit(PathLength(), stream, calibrate=0, unit_size=2800, progress=False)
    found = found.result(PathLength)
    assert (found.n, found.value) == (400, pytest.approx(truth / 400))
    stored = Store(write_store(stream, tmp_path / "acts", unit_size=2800))
    kept = fit(PathLength(), stored, calibrate=0, unit_size=2800, progress=False)
    assert kept.result(PathLength).value == found.value
    more = Stream.of(x[:70], ids=[f"more {e}" for e in example[:70]], position=position[:70])
    both = Store(append_store(more, tmp_path / "acts"))
    kept = fit(PathLength(), both, calibrate=0, unit_size=2800, progress=False)
    more_of = sum(float(x[example == e].double().diff(dim=0).norm(dim=1).sum()) for e in range(10))
    assert kept.result(PathLength).n == 410
    assert kept.result(PathLength).value == pytest.approx((truth + more_of) / 410)


def test_rows_of_an_example_that_lie_apart_are_refused_in_arrays_and_stores(tmp_path):
    mixed = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    ids = [f"example {i // 7}" for i in mixed.tolist()]
    stream = Stream.of(torch.zeros(700, 2), ids=ids, position=mixed % 7)
    stored = Store(write_store(stream, tmp_path / "acts"))
    seen = write_store(stream, tmp_path / "told", columns={"user": ["a"] * 700})
    for rows in (stream, stored, Cleared(Store(seen), "user", {"a"})):
        with pytest.raises(InputError, match="Steps needs the rows of an example"):
            fit(PathLength(), rows, calibrate=0, progress=False)


def test_order_that_cannot_tell_examples_apart_is_refused():
    ids, position = [f"example {i // 7}" for i in range(70)], torch.arange(70) % 7
    with pytest.raises(
        InputError,
        match=r"StepsByOrder needs whole examples and finds them by the column 'order'.*Use",
    ):
        PathLength(StepsByOrder()).fit(torch.zeros(70, 2), ids=ids, position=position)
    lone = PathLength(StepsByOrder()).fit(torch.zeros(70, 2))
    assert (lone.n, lone.value) == (70, 0.0)
