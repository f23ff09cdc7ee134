"""The arrows of the studies of latent steps, read back from their tokens."""

import pytest

from sonde_studies._arrows import CELLS, PAUSE, arrows


@pytest.mark.truth("arrows that are followed by hand")
@pytest.mark.parametrize(("length", "pause"), [(1, False), (2, True)])
def test_cells_are_where_the_arrows_lead(length, pause):
    ids, cells = arrows(length, 3, pause)
    for row, way in zip(ids[:20].tolist(), cells.tolist(), strict=False):
        to = dict(divmod(token, CELLS) for token in row[:CELLS])
        assert sorted(to) == sorted(to.values()) == list(range(CELLS))
        at = row[CELLS] - CELLS * CELLS
        for cell in way:
            at = to[at]
            assert at == cell
        assert len(way) == length
        assert row[CELLS + 1 :] == [PAUSE] * pause
