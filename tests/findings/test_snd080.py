import pytest

from findings._nets import assert_clear, assert_raised
from findings._writing import docstrings, some, written
from sonde.findings.codes.snd080 import SND080
from sonde.findings.evidence.record import Evidence

HEADER = "Permission is granted to any person who obtains a copy of this text to use it freely. "


def labelled(texts: list[str]) -> Evidence:
    n = len(texts)
    return written(texts, label=[i % 3 for i in range(n)])


@pytest.mark.truth("the words that were put before and after the texts")
@pytest.mark.parametrize("side", ["begin", "end"])
def test_words_that_nearly_all_texts_share_are_named(side: str) -> None:
    rows = some(0.95)
    texts = [t[:150].strip() for t in docstrings()]
    given = [(HEADER + t if side == "begin" else f"{t} {HEADER}") if r else t
             for t, r in zip(texts, rows, strict=True)]  # fmt: skip
    finding = assert_raised(SND080().check(labelled(given)), "warning")
    own = [len(HEADER.strip()) / len(t.strip()) if r else 0.0
           for t, r in zip(given, rows, strict=True)]  # fmt: skip
    assert finding.figure.value == pytest.approx(sum(own) / len(own), abs=0.02)
    assert f"{int(rows.sum()):,} of" in finding.sentence
    assert rows[list(finding.examples)].all()


def test_the_level_follows_from_how_much_is_shared_and_from_what_is_judged() -> None:
    few = [HEADER + t.ljust(600, "x") for t in docstrings()]
    assert_raised(SND080().check(labelled(few)), "note")
    unlabelled = [HEADER + t[:100] for t in docstrings()]
    assert_raised(SND080().check(written(unlabelled)), "note")  # may be a prompt
    assert_clear(SND080().check(labelled(list(docstrings()))))
