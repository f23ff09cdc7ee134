"""Pairs that are selected by gates: what products keep, and how the maps on them err."""

import pytest
import torch

from sonde_studies._gated_pairs import COLUMNS, FIT, PLANTED, ROWS, _pair_error, pair_selection


@pytest.mark.slow
@pytest.mark.truth("counting: the four columns of two planted pairs have six pairs")
def test_products_keep_pairs_between_the_columns_that_they_need():
    found = pair_selection(3, 800)
    pairs = COLUMNS * (COLUMNS - 1) // 2
    assert found["kept | products"] == pytest.approx(1 - (6 - len(PLANTED)) / (pairs - 2))
    assert found["kept | free"] > found["kept | products"]
    assert found["products"] > 0.95


@pytest.mark.slow
@pytest.mark.truth("least squares on the pairs that are kept")
def test_errors_are_those_of_a_linear_map_on_the_kept_pairs():
    draw = torch.Generator().manual_seed(5)
    pairs = torch.randn(ROWS, 7, generator=draw)
    y = pairs @ torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 1.5, 0.3])
    y = y + 0.4 * torch.randn(ROWS, generator=draw)
    kept = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    x = torch.cat([pairs[:, kept > 0], torch.ones(ROWS, 1)], 1)
    said = x[FIT:] @ torch.linalg.lstsq(x[:FIT], y[:FIT, None]).solution[:, 0]
    want = 1 - float((said - y[FIT:]).square().mean() / y[FIT:].var(correction=0))
    assert 0.5 < want < 0.95
    assert _pair_error(pairs, y, kept, 5, 1_500) == pytest.approx(want, abs=0.01)
