import html

import numpy as np
import pytest

from findings._nets import assert_clear, assert_raised
from findings._writing import docstrings, some, written
from sonde.findings.codes.snd077 import SND077


@pytest.mark.truth("the texts in which mark-up and wrongly read signs were put")
def test_mark_up_and_broken_signs_are_counted() -> None:
    rows = some(0.4)
    marked = [f"<p>{html.escape(t)} &amp; more</p>" if r else t
              for t, r in zip(docstrings(), rows, strict=True)]  # fmt: skip
    finding = assert_raised(SND077().check(written(marked)), "warning")
    assert set(finding.examples) >= set(np.flatnonzero(rows))
    assert finding.figure.value == pytest.approx(rows.mean(), abs=0.02)
    rows = some(0.1)
    broken = [f"{t} – “café”".encode().decode("cp1252", "replace") if r else t
              for t, r in zip(docstrings(), rows, strict=True)]  # fmt: skip
    finding = assert_raised(SND077().check(written(broken)), "warning")
    assert set(finding.examples) == set(np.flatnonzero(rows))
    assert finding.fix.startswith("Read the files as UTF-8")


def test_documentation_without_mark_up_is_clear() -> None:
    assert_clear(SND077().check(written(docstrings())))
