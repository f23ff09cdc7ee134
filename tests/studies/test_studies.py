"""Every study runs at tiny size and gives what its table needs."""

import math

import pytest

from sonde_studies import STUDIES, as_text, run_study, study_of


@pytest.mark.slow
@pytest.mark.parametrize("word", STUDIES)
def test_it_runs_and_repeats(word):
    study = study_of(word)
    assert study.name == word
    table = run_study(study, range(3), tiny=True)
    again = study.run(0, True, lambda _: None)
    for claim in (*study.claims, study.null):
        assert all(math.isfinite(v) for v in table.figures[claim.key]), claim.key
        assert again[claim.key] == table.figures[claim.key][0], claim.key
    assert len(as_text(table)) > 200
