"""The clusters of ``correlation-match``, and the shares that ``feature-complexity`` follows."""

import pytest
import torch

from sonde_studies._unit_clusters import CLUSTERS, judge_clusters
from sonde_studies.feature_complexity import passed_share

ROWS, EACH = 1_000, 3


@pytest.mark.truth("eight hidden variables, each shown by three units of both nets")
def test_clusters_of_planted_variables_correlate_and_explain_as_planted() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, CLUSTERS, generator=draw).repeat_interleave(EACH, 1)
    x, y = (hidden + torch.randn(hidden.shape, generator=draw) for _ in range(2))
    y = torch.cat([y, torch.zeros(ROWS, 1)], 1)
    found = judge_clusters(x, y, 1)
    assert found["units in a cluster"] == EACH
    assert found["in clusters"] == pytest.approx(1 / 2, abs=0.03)  # variances 1 and 1 + 1
    # of a unit with variance 2 the mean of three others, with variance 1 + 1/3, explains 3/8
    assert found["by the cluster"] == pytest.approx(3 / 8, abs=0.03)
    assert found["by lot"] == pytest.approx(1 / 4, abs=0.05)
    assert found["in shuffled clusters"] < 0.15


@pytest.mark.truth("blocks that write along planted directions")
def test_a_feature_passes_by_the_blocks_that_do_not_write_it() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(ROWS, 4, generator=draw))[0]
    rows = rows - rows.mean(0)
    start = torch.stack([rows[:, 0], rows[:, 1], torch.zeros(ROWS)], 1)
    middle = start + torch.stack([torch.zeros(ROWS), rows[:, 2], rows[:, 3]], 1)
    last = middle + torch.stack([torch.zeros(ROWS), torch.zeros(ROWS), rows[:, 3]], 1)
    share = passed_share([start, middle, last], torch.eye(3).double())
    # before the two blocks: all and all; a half and all; nothing and a half
    assert share.tolist() == pytest.approx([1.0, 0.75, 0.25], abs=0.02)
