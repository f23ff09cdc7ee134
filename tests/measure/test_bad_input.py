"""What every measure says of rows that it cannot use: a clear error, or a flag."""

import math
from typing import Any

import pytest
import torch

import sonde.measure as family
from sonde.core.errors import SondeError
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.engine.folding import observe_stream
from sonde.engine.passes import merge_pair, states_of
from sonde.engine.requests import Task, requests
from sonde.testing.instrument_laws import fit, lacking, make_inputs, sites_of, stream_of

MEASURES = tuple(
    cls(**cls.examples[0])
    for name in family.__all__
    if isinstance(cls := getattr(family, name), type) and issubclass(cls, Instrument)
)
PLAIN = tuple(m for m in MEASURES if not lacking(m))
GROWN = 26
FINE_WITH_ONE_CLASS = {
    "ActivationCoverage",  # asks of a row only whether it was predicted rightly
    "BottleneckDegree",  # all that rows tell of their inputs is left once the only class is known
}


def needs(measure: Instrument, column: str) -> bool:
    return any(column in read.statistic.needs() for read in measure.all_reads().values())


def each(measures: Any) -> Any:
    return pytest.mark.parametrize("measure", measures, ids=lambda m: type(m).__name__)


def result_of(measure: Instrument, inputs: dict[str, Any]) -> Result | None:
    """Return the result; None where the rows are refused."""
    try:
        return fit(measure, inputs)
    except SondeError:
        return None


@each(PLAIN)
def test_rows_that_are_not_finite_are_left_out_and_flagged(measure):
    inputs = make_inputs(96)
    for key in ("x", "a", "b", "c"):
        inputs[key] = inputs[key].clone()
        inputs[key][[3, 50]] = math.nan
    found = result_of(measure, inputs)
    assert found is not None
    assert "nonfinite" in found.flags
    assert found.n < 96


@each([m for m in PLAIN if needs(m, "label") and type(m).__name__ not in FINE_WITH_ONE_CLASS])
def test_one_class_is_refused_or_flagged(measure):
    found = result_of(measure, {**make_inputs(96), "label": torch.zeros(96, dtype=torch.int64)})
    assert found is None or found.flags


@each([m for m in PLAIN if needs(m, "label")])
def test_labels_are_whole_numbers(measure):
    inputs = make_inputs(96)
    found = result_of(measure, {**inputs, "label": inputs["label"].double() + 0.5})
    assert found is None


@each([m for m in PLAIN if m.span == "pair"])
def test_another_number_of_rows_is_refused(measure):
    inputs = make_inputs(96)
    with pytest.raises(SondeError, match=r"9[65]"):
        fit(measure, {**inputs, "b": inputs["b"][:-1]})


@each([m for m in PLAIN if m.span == "pair" and "cca" in type(m).__name__.lower()])
def test_fewer_rows_than_units_are_flagged(measure):
    draw = torch.Generator().manual_seed(3)
    inputs = make_inputs(40, width=64)
    inputs |= {k: torch.randn(40, 64, generator=draw, dtype=torch.float64) for k in "ab"}
    found = result_of(measure, inputs)
    assert found is None or {"few_rows", "rank_deficient"} & set(found.flags)


def merged_often(measure: Instrument) -> Result | None:
    """Return the result of a state that was merged with itself; None where it keeps rows."""
    task = Task(measure, sites_of(measure))
    wanted = requests([task])
    if type(measure).then is not Instrument.then:
        return None
    if any(request.statistic.merging != "exact" for request in wanted.values()):
        return None
    states = observe_stream(stream_of(measure, make_inputs(96)), wanted)
    first = measure.result(**states_of(task, states))
    for step in range(GROWN):
        states = {i: merge_pair(wanted[i].statistic, s, s) for i, s in states.items()}
        if step == 0 and measure.result(**states_of(task, states)).n != 2 * first.n:
            return None
    found = measure.result(**states_of(task, states))
    assert found.n == first.n << GROWN, type(measure).__name__
    return found


@pytest.mark.slow
@pytest.mark.truth("the rows that a state merged with itself holds, by arithmetic")
def test_counts_go_beyond_32_bits():
    """States that are sums hold more rows than 2^31, and the figure is that of the rows."""
    seen = {type(m).__name__: merged_often(m) for m in PLAIN}
    kept = {name: found for name, found in seen.items() if found is not None}
    for name, found in kept.items():
        assert found.n > 1 << 31, name
        assert found.flags or torch.isfinite(torch.as_tensor(found.value)).all(), name
    assert len(kept) > 30
