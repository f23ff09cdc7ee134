"""The arrows of the study of latent steps, read back from its tokens."""

import pytest

from sonde_studies.latent_steps import CELLS, PAUSE, _data


@pytest.mark.truth("arrows that are followed by hand")
@pytest.mark.parametrize(("arrows", "pause"), [(1, False), (2, True)])
def test_answers_are_where_the_arrows_lead(arrows, pause):
    ids, answers = _data(arrows, 3, pause)
    for row, answer in zip(ids[:20].tolist(), answers.tolist(), strict=False):
        to = dict(divmod(token, CELLS) for token in row[:CELLS])
        assert sorted(to) == sorted(to.values()) == list(range(CELLS))
        at = row[CELLS] - CELLS * CELLS
        for _ in range(arrows):
            at = to[at]
        assert at == answer
        assert row[CELLS + 1 :] == [PAUSE] * pause
