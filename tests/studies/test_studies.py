"""Every study runs at tiny size and gives what its table needs."""

import math

import pytest

from sonde_studies import STUDIES, StudyTable, as_text, study_of


@pytest.mark.slow
@pytest.mark.parametrize("word", STUDIES)
def test_it_runs_and_repeats(word):
    study = study_of(word)
    assert study.name == word
    found, again = (study.run(0, True, lambda _: None) for _ in range(2))
    for claim in (*study.claims, study.null):
        assert math.isfinite(found[claim.key]), claim.key
    assert found == pytest.approx(again, rel=0, abs=0, nan_ok=True)
    table = StudyTable(study, (0, 0), {key: (x, x) for key, x in found.items()}, tiny=True)
    assert all(claim.figure.split()[0] in as_text(table) for claim in study.claims)
