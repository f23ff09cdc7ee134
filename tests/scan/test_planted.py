import pytest
from _pytest.mark import ParameterSet

from scan import _plants_answers as answers
from scan import _plants_parts as parts
from scan import _plants_tables as tables
from scan import _plants_versus as versus
from scan import _plants_writing as writing
from scan._plants import PLANTS as STATES
from scan._plants import Plant
from sonde.findings.catalogue import rule_classes
from sonde.report import Report

EVERY = (STATES, answers.PLANTS, parts.PLANTS, tables.PLANTS, versus.PLANTS, writing.PLANTS)
PLANTS = sorted((plant for some in EVERY for plant in some), key=lambda p: p.code)


LANGUAGE = {"SND028", "SND029", "SND066", "SND067", "SND068", "SND070"}
"""Codes whose plants scan a language model, which takes ten seconds and more."""


def planted(plants: list[Plant]) -> list[ParameterSet]:
    return [
        pytest.param(p, id=p.code, marks=pytest.mark.slow if p.code in LANGUAGE else ())
        for p in plants
    ]


def states(report: Report) -> dict[str, str]:
    return {c["code"]: c["state"] for c in report.json()["checks"]}


def reasons(report: Report) -> dict[str, str]:
    return {c["code"]: c["reason"] or "" for c in report.json()["checks"]}


def test_every_code_has_a_plant() -> None:
    assert [p.code for p in PLANTS] == list(rule_classes())


@pytest.mark.essential
@pytest.mark.parametrize("plant", planted(PLANTS))
def test_the_fault_is_raised_at_its_level_with_its_consequences(plant: Plant) -> None:
    report = plant.fault()
    found = {f["code"]: f for f in report.findings}
    assert "failed" not in states(report).values(), reasons(report)
    assert plant.code in found, (states(report)[plant.code], reasons(report)[plant.code])
    finding = found[plant.code]
    assert finding["level"] == plant.level, finding["sentence"]
    assert finding["because_of"] is None
    assert len(finding["sentence"]) <= 240
    for code, cause in plant.folds.items():
        assert code in found, (code, states(report)[code])
        assert found[code]["because_of"] == cause
    for code in plant.voids:
        assert states(report)[code] == "withheld"
        assert plant.code in reasons(report)[code]


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=lambda p: p.code)
def test_its_twin_is_looked_at_and_clear(plant: Plant) -> None:
    report = plant.twin()
    assert "failed" not in states(report).values(), reasons(report)
    raised = [f["sentence"] for f in report.findings if f["code"] == plant.code]
    assert states(report)[plant.code] == "clear", raised or reasons(report)[plant.code]
