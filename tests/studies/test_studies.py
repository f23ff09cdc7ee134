"""Every study runs at tiny size and gives what its table needs."""

import math
import re
import time

import pytest

from sonde_studies import STUDIES, StudyTable, as_text, study_of
from sonde_studies.study import figures_of

TIMES = re.compile(r"\b(ms|us|seconds)\b")
"""In the names of figures that no two runs share."""
DEAR_SECONDS = 0.5


def _repeats(figures):
    return {name: value for name, value in figures.items() if not TIMES.search(name)}


@pytest.mark.slow
@pytest.mark.parametrize("word", STUDIES)
def test_it_runs_and_repeats(word):
    """One that takes its time even at tiny size runs once."""
    study = study_of(word)
    assert study.name == word
    began = time.process_time()
    found = figures_of(study, 0, True, lambda _: None)
    for claim in (*study.claims, study.null):
        assert math.isfinite(found[claim.key]), claim.key
    if time.process_time() - began < DEAR_SECONDS:
        again = figures_of(study, 0, True, lambda _: None)
        assert _repeats(found) == pytest.approx(_repeats(again), rel=0, abs=0, nan_ok=True)
    table = StudyTable(study, (0, 0), {key: (x, x) for key, x in found.items()}, tiny=True)
    assert all(claim.figure.split()[0] in as_text(table) for claim in study.claims)
