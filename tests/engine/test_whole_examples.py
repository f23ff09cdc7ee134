"""A measure whose statistic needs whole examples gets them, however many rows a unit has."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core import Instrument, Result, State, Statistic, Stream
from sonde.run.fitting.fit import fit


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
