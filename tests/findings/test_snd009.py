import torch

from findings._nets import assert_clear, assert_raised, evidence_of, noise
from sonde.core.stream import Stream
from sonde.findings.rule import Check, Rule
from sonde.findings.snd009 import SND009
from sonde.findings.snd011 import SND011
from sonde.findings.snd014 import SND014
from sonde.findings.snd022 import SND022


def check(n: int, rules: tuple[Rule, ...] = (SND011(), SND014(), SND022()), **options) -> Check:
    limited = options.pop("limited", False)
    label = options.pop("label", None)
    evidence = evidence_of(Stream.of(noise(n, 20), label=label), limited=limited)
    checks = tuple(rule.check(evidence) for rule in rules)
    evidence.options.update({"checks": checks, **options})  # type: ignore[attr-defined]
    return SND009().check(evidence)


def test_twenty_rows_are_a_warning_that_lists_what_was_withheld() -> None:
    found = check(20)
    assert_raised(found, "warning")
    assert [w["code"] for w in found.tables["withheld"]] == ["SND011", "SND014", "SND022"]
    assert found.finding is not None
    assert found.finding.sentence == (
        "3 checks had too few rows (SND011, SND014 and SND022). Of 20 rows, SND014 needs 256 rows, "
        "20 present."
    )


def test_a_hundred_rows_are_a_note_unless_a_gate_names_a_check() -> None:
    assert_raised(check(100), "note")
    assert_raised(check(100, fail_on=("snd014",)), "warning")


def test_two_thousand_rows_are_enough() -> None:
    assert_clear(check(2000))


def test_a_limit_over_a_sorted_file() -> None:
    found = check(300, label=torch.arange(300) // 150, limited=True)
    assert_raised(found, "warning")
    assert found.finding is not None
    assert "sorted by label" in found.finding.sentence
    assert_clear(check(300, label=torch.arange(300) % 2, limited=True))
