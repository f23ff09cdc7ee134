from dataclasses import replace
from itertools import islice

import pytest
import torch

from findings._nets import assert_clear, assert_raised, evidence_of, noise
from sonde.core.stream import Stream
from sonde.data.shipped import PIECES, shipped_source
from sonde.findings.codes.snd009 import LARGER, SND009
from sonde.findings.codes.snd011 import SND011
from sonde.findings.codes.snd014 import SND014
from sonde.findings.codes.snd022 import SND022
from sonde.findings.rule import Check, Rule
from sonde.findings.words.step import Step


def check(n: int, rules: tuple[Rule, ...] = (SND011(), SND014(), SND022()), **options) -> Check:
    known = {name: options.pop(name) for name in ("limited", "name") if name in options}
    label = options.pop("label", None)
    evidence = evidence_of(Stream.of(noise(n, 20), label=label), **known)
    checks = tuple(rule.check(evidence) for rule in rules)
    return SND009().check(replace(evidence, checks=checks, **options))


def test_twenty_rows_are_a_warning_that_lists_what_was_withheld() -> None:
    found = check(20)
    assert_raised(found, "warning")
    assert [w["code"] for w in found.tables["withheld"]] == ["SND011", "SND014", "SND022"]
    assert found.finding is not None
    assert found.finding.sentence == (
        "3 checks had too few rows (SND011, SND014 and SND022). SND014 needs 256 rows, "
        "20 present. All of the data was read."
    )
    figure = found.finding.figure
    assert (figure.value, figure.threshold, figure.unit) == (20.0, 256.0, "rows")


def test_the_figure_shows_what_the_most_demanding_check_asks_for() -> None:
    """SND014 asks for rows and SND022 for groups, of which there are fewer."""
    finding = check(100, label=None).finding
    assert finding is not None
    assert finding.sentence.split("). ")[1].startswith("SND014 needs 256 rows, 100 present")
    assert (finding.figure.value, finding.figure.threshold) == (100.0, 256.0)
    few = check(20, rules=()).finding
    assert few is not None
    assert (few.figure.value, few.figure.threshold) == (20.0, SND009().warning)


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


def test_the_next_step_gives_more_rows() -> None:
    limited = check(20, limited=True, name="big.jsonl").finding
    assert limited is not None
    assert limited.next == Step("scan", {"limit": None})
    whole = check(20, name="small.jsonl").finding
    assert whole is not None
    assert whole.next == Step("scan", data="MORE_DATA")
    assert whole.sentence.endswith("All of the data was read.")
    shipped = check(20, name="sonde:stdlib/test").finding
    assert shipped is not None
    assert shipped.next == Step("scan", data="sonde:stdlib/test-all")
    assert "All of the data" not in shipped.sentence


@pytest.mark.truth("the shipped sets themselves")
def test_every_larger_set_is_larger() -> None:
    def count(name: str) -> int:
        source, most = shipped_source(name)
        n = sum(1 for _ in islice(source.rows(), PIECES + 900))
        return n if most is None else min(n, most)

    for name in {name.partition("/")[0] for name in LARGER}:
        assert f"{name}/test" in LARGER
    for name in ("sonde:digits", "sonde:digits/test"):
        assert count(LARGER[name]) > count(name)
    for name in ("sonde:stdlib", "sonde:stdlib/test", "sonde:stdlib/train"):
        small, large = shipped_source(name), shipped_source(LARGER[name])
        assert small[1] == PIECES
        assert large[1] is None
        assert large[0].name == LARGER[name]
