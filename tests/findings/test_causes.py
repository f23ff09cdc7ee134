import pytest

from findings._evidence import digits, evidence_of, states
from sonde.findings.catalogue import rule_classes
from sonde.findings.causes import explanations, name_causes
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Check, Figure, Finding, Level

CIRCLES = {
    frozenset(pair)
    for pair in (
        ("SND011", "SND023"),
        ("SND028", "SND029"),
        ("SND028", "SND067"),
        ("SND029", "SND066"),
        ("SND066", "SND067"),
    )
}
"""Pairs of circles, in which each may explain the other, at once or through a third."""


def found(code: str, *sites: str, level: Level = "warning", effect: float = 0.5) -> Check:
    figure = Figure("value", 1.0)
    finding = Finding(code, level, "Something.", figure, sites=sites, effect=effect)
    return Check(code, "raised", "", figure, finding)


def scanned() -> Evidence:
    return evidence_of(states(digits()[0][:64])[0])


def because(checks: list[Check]) -> dict[str, str | None]:
    return {c.code: c.finding.because_of for c in checks if c.finding is not None}


@pytest.mark.slow
def test_later_sites_are_explained_and_earlier_ones_are_not() -> None:
    checks = [found("SND001", "blocks.1"), found("SND016", "blocks.0"), found("SND023", "blocks.2")]
    assert because(name_causes(scanned(), checks)) == {
        "SND001": None,
        "SND016": None,
        "SND023": "SND001",
    }


def test_dead_sites_explain_only_at_the_highest_level_and_what_lies_there_or_after() -> None:
    for level, expected in (("error", "SND011"), ("warning", None)):
        checks = [found("SND011", "blocks.1", level=level), found("SND025", "blocks.1")]  # type: ignore[arg-type]
        assert because(name_causes(scanned(), checks))["SND025"] == expected
    for later, expected in (("blocks.2", "SND011"), ("blocks.0", None)):
        checks = [found("SND011", "blocks.1", level="error"), found("SND022", "blocks.1", later)]
        assert because(name_causes(scanned(), checks))["SND022"] == expected


def test_two_findings_never_explain_each_other() -> None:
    checks = [found("SND011", "blocks.1", level="error"), found("SND023", "blocks.1")]
    assert because(name_causes(scanned(), checks)) == {"SND011": None, "SND023": "SND011"}


def test_rows_that_meet_on_corners_meet_at_all_later_sites() -> None:
    for sites, expected in ((("blocks.2",), "SND013"), (("blocks.0", "blocks.2"), None)):
        checks = [found("SND013", "blocks.1"), found("SND042", *sites)]
        assert because(name_causes(scanned(), checks))["SND042"] == expected


def test_without_a_function_comparisons_are_withheld() -> None:
    clear = Check("SND051", "clear")
    missing = Check("SND053", "not_applicable", "no OTHER")
    for level, state in (("error", "withheld"), ("note", "clear")):
        settled = name_causes(scanned(), [found("SND004", level=level), clear, missing])  # type: ignore[arg-type]
        assert [c.state for c in settled] == ["raised", state, "not_applicable"]
    assert settled[1].reason == ""
    settled = name_causes(scanned(), [found("SND004"), found("SND042")])
    assert settled[1].state == "withheld"
    assert settled[1].finding is None
    assert "SND004" in settled[1].reason


def test_shuffled_labels_withhold_what_rests_on_labels() -> None:
    settled = name_causes(scanned(), [found("SND034"), found("SND036"), Check("SND033", "clear")])
    assert [c.state for c in settled] == ["withheld", "raised", "withheld"]


def test_few_copies_do_not_explain_the_order_of_the_file() -> None:
    for effect, expected in ((0.02, "SND041"), (0.0005, None)):
        checks = [found("SND041", effect=effect), found("SND044", "blocks.0")]
        assert because(name_causes(scanned(), checks))["SND044"] == expected


def test_sites_are_written_as_tables_write_them() -> None:
    from dataclasses import replace

    evidence = scanned()
    schema = replace(evidence.sites[1].schema, key="blocks.1:out")
    sites = (evidence.sites[0], replace(evidence.sites[1], schema=schema), evidence.sites[2])
    settled = name_causes(replace(evidence, sites=sites), [found("SND016", "blocks.1")])
    assert settled[0].finding is not None
    assert settled[0].finding.sites == ("blocks.1:out",)


def test_every_code_that_is_explained_exists() -> None:
    named = {code for _, line in explanations() for code in line.effects}
    assert named <= set(rule_classes())


def test_causes_come_before_what_they_explain() -> None:
    first: dict[str, int] = {}
    for i, (code, _) in enumerate(explanations()):
        first.setdefault(code, i)
    late = [
        (code, effect)
        for code, line in explanations()
        for effect in line.effects
        if effect in first and first[effect] < first[code]
    ]
    assert {frozenset(pair) for pair in late} == CIRCLES


def test_the_earliest_cause_explains() -> None:
    checks = [found("SND015"), found("SND012"), found("SND069"), found("SND037")]
    assert because(name_causes(scanned(), checks)) == {
        "SND015": None, "SND012": "SND015", "SND069": "SND015", "SND037": "SND015",
    }  # fmt: skip
