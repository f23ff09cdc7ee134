"""Every instrument against every law."""

import re
from pathlib import Path

import pytest

import sonde.stats
from contract.statistics import exported_instruments
from narrow import present
from sonde.core.instrument import Detector
from sonde.core.shift import Shift
from sonde.run.instruments.families import FAMILIES
from sonde.testing import KINDS, laws_of
from sonde.testing.instrument_laws import fit, lacking, make_inputs

BIBLIOGRAPHY = Path(__file__).parents[2] / "docs" / "papers.bib"
NO_DIRECTION = {
    "ConditionalSteering": "high means one class, not far away",
    "ContrastProbe": "high means one class, not far away",
    "LinearProbe": "high means one class, not far away",
    "MassMean": "high means one class, not far away",
    "PAWN": "high means one class, not far away",
    "RepresentationReading": "high means one class, not far away",
    "NAC": "its outer bins are open, and far rows share them with the largest usual ones",
    "TrajectoryVerifier": "high means wrong, not far away",
}


INSTRUMENTS = exported_instruments()
RUNNABLE = [i for i in INSTRUMENTS if not lacking(i)]
DETECTORS = [i for i in RUNNABLE if isinstance(i, Detector)]


def each(instruments):
    return pytest.mark.parametrize(
        "instrument", instruments, ids=[repr(i).replace(" ", "") for i in instruments]
    )


def keys_in_bibliography() -> set[str]:
    return set(re.findall(r"^@\w+\{([^,]+),", BIBLIOGRAPHY.read_text(), re.M))


def test_families_export_instruments():
    families = {type(i).__module__.split(".")[1] for i in INSTRUMENTS}
    assert families <= set(FAMILIES)


def test_every_instrument_runs_on_plain_arrays():
    assert {repr(i): lacking(i) for i in INSTRUMENTS if lacking(i)} == {}


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


RANGE = re.compile(r"^ *Range +[\[(](-?[\d.]+|-inf), (-?[\d.]+|inf)[\])]", re.M)
FIGURES = [
    i for i in RUNNABLE
    if type(i).__module__.split(".")[1] in ("measure", "explain") and RANGE.search(i.__doc__ or "")
]  # fmt: skip


@pytest.mark.truth("the range that the docstring states")
@each(FIGURES)
def test_the_range_of_a_figure_is_the_documented_one(instrument):
    ends = present(RANGE.search(instrument.__doc__)).groups()
    assert fit(instrument, make_inputs()).range == tuple(map(float, ends))


@pytest.mark.parametrize(
    ("law", "instrument"),
    [
        pytest.param(
            law,
            instrument,
            id=f"{law.name}-{instrument!r}".replace(" ", ""),
            marks=[pytest.mark.slow] * (law.name == "persons"),  # fits 576 rows, up to three times
        )
        for instrument in RUNNABLE
        for law in laws_of(instrument)
        if law not in KINDS[Shift]
        and (law.name != "score_direction" or type(instrument).__name__ not in NO_DIRECTION)
    ],
)
def test_law(law, instrument):
    law.hold(instrument)
