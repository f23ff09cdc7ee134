"""Damaged files of a run that was interrupted: their units are done again, with the same bits."""

from pathlib import Path

import pytest

from probe_learner import MinibatchProbe
from run_case import Stopping, rows
from sonde.core.instrument import Instrument
from sonde.core.state import equal
from sonde.core.stream import Stream
from sonde.measure import Covariance, UnitEntropy
from sonde.run.fitting.fit import Fitted, fit
from sonde.run.passes.driver import Interrupted

N_UNITS, DONE = 12, 6


def source() -> Stream:
    x = rows(100 * N_UNITS)
    return Stream.of(x, label=(x[:, 0] > 3).long())


def fitted(instruments: list[Instrument], stream: Stream, directory: Path | None = None) -> Fitted:
    return fit(instruments, stream, unit_size=100, directory=directory, progress=False)


@pytest.mark.truth("a fit without interruption")
@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1] + bytes([raw[-1] ^ 4]), lambda raw: raw[:-9], lambda _: b""]
)
@pytest.mark.parametrize(
    ("instruments", "victims", "again"),
    [
        ([UnitEntropy()], "states/*", N_UNITS + N_UNITS - DONE),
        ([UnitEntropy()], "pass2/states/*", N_UNITS),
        ([Covariance(), MinibatchProbe()], "chain.sonde", N_UNITS),
    ],
    ids=["first pass", "second pass", "learner"],
)
def test_what_is_damaged_is_done_again(tmp_path, instruments, victims, again, damage):
    whole, run = fitted(instruments, source()), tmp_path / "a.run"
    with pytest.raises(Interrupted):
        fitted(instruments, Stopping(source(), N_UNITS + DONE), run)
    found = list(run.glob(victims))
    assert found
    for path in found:
        path.write_bytes(damage(path.read_bytes()))
    resumed = Stopping(source())
    states = fitted(instruments, resumed, run).states
    assert len(resumed.asked) == again
    assert states.keys() == whole.states.keys()
    assert all(equal(states[i], whole.states[i]) for i in whole.states)
