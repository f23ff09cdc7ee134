"""Every instrument against every law."""

import re
from pathlib import Path
from typing import get_type_hints

import pytest

import sonde.stats
from contract import instrument_laws as laws
from contract.statistics import exported_instruments
from sonde.core.instrument import Detector, Instrument, Read
from sonde.core.statistic import Learner, parameter_names

BIBLIOGRAPHY = Path(__file__).parents[2] / "docs" / "papers.bib"
BROUGHT = set(laws.make_inputs(4)) | {"draw", "group_draw", "order", "occurrence", "y", "special"}

NO_DIRECTION = {
    "ContrastProbe": "high means one class, not far away",
    "LinearProbe": "high means one class, not far away",
    "MassMean": "high means one class, not far away",
    "PAWN": "high means one class, not far away",
    "NAC": "its outer bins are open, and far rows share them with the largest usual ones",
    "TrajectoryVerifier": "high means wrong, not far away",
}


def needs(instrument: Instrument) -> set[str]:
    statistics = [r.statistic if isinstance(r, Read) else r for r in instrument.reads().values()]
    found = {name for s in statistics for name in s.needs()}
    if isinstance(instrument, Detector):
        found |= set(parameter_names(_scorer(instrument).score))
    return found


def _scorer(detector: Detector):
    return get_type_hints(type(detector).result)["return"]


INSTRUMENTS = exported_instruments()
RUNNABLE = [i for i in INSTRUMENTS if needs(i) <= BROUGHT]
DETECTORS = [i for i in RUNNABLE if isinstance(i, Detector)]


def each(instruments):
    return pytest.mark.parametrize(
        "instrument", instruments, ids=[repr(i).replace(" ", "") for i in instruments]
    )


@pytest.fixture(scope="module")
def inputs():
    return laws.make_inputs()


def keys_in_bibliography() -> set[str]:
    return set(re.findall(r"^@\w+\{([^,]+),", BIBLIOGRAPHY.read_text(), re.M))


def test_families_export_instruments():
    families = {type(i).__module__.split(".")[1] for i in INSTRUMENTS}
    assert families == {"measure", "detect"}


def test_every_instrument_runs_on_plain_arrays():
    lacking = {type(i).__name__: sorted(needs(i) - BROUGHT) for i in INSTRUMENTS}
    assert {name: columns for name, columns in lacking.items() if columns} == {}


@each(INSTRUMENTS)
def test_paper_is_in_the_bibliography(instrument):
    assert instrument.paper == "" or instrument.paper in keys_in_bibliography()


def test_references_are_in_the_bibliography():
    members = {type(i) for i in INSTRUMENTS}
    members |= {getattr(sonde.stats, name) for name in sonde.stats.__all__}
    cited = {}
    for member in members:
        tail = (member.__doc__ or "").partition("References\n")[2].partition("\n\n")[0]
        for key in re.findall(r"\b[a-z]+[0-9]{4}[a-z0-9]*\b", tail):
            cited.setdefault(key, member.__name__)
    assert {k: v for k, v in cited.items() if k not in keys_in_bibliography()} == {}
    assert len(cited) > 5


@each(RUNNABLE)
def test_value(instrument, inputs):
    laws.law_value(instrument, inputs)


@each(RUNNABLE)
def test_degenerate(instrument):
    laws.law_degenerate(instrument, laws.make_inputs)


@each(RUNNABLE)
def test_sizes(instrument):
    laws.law_sizes(instrument, laws.make_inputs)


def learns(instrument: Instrument) -> bool:
    """Whether its state is trained by steps in plan order, so that the order of rows matters."""
    return any(isinstance(r.statistic, Learner) for r in instrument.all_reads().values())


@each([i for i in RUNNABLE if not learns(i)])
def test_order(instrument, inputs):
    laws.law_order(instrument, inputs)


@each(RUNNABLE)
def test_again(instrument, inputs):
    laws.law_again(instrument, inputs)


@each([i for i in RUNNABLE if not isinstance(i, Detector)])
def test_company(instrument, inputs):
    laws.law_company(instrument, [i for i in RUNNABLE if i is not instrument][:12], inputs)


@each([i for i in RUNNABLE if type(i).then is not Instrument.then])
def test_then(instrument):
    laws.law_then(instrument, laws.make_inputs)


@each(DETECTORS)
def test_score_finite(instrument, inputs):
    laws.law_score_finite(instrument, inputs)


@each(DETECTORS)
def test_score_alone(instrument, inputs):
    laws.law_score_alone(instrument, inputs)


@each([i for i in DETECTORS if type(i).__name__ not in NO_DIRECTION])
def test_score_direction(instrument, inputs):
    laws.law_score_direction(instrument, inputs)
