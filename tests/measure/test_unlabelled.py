"""Rows without a label are left out of what is measured about labels, and that is flagged."""

import pytest
import torch

from sonde.measure import bottleneck_degree, information_plane, v_information

FIGURES = {
    "information_plane": lambda x, label: information_plane(x, label, estimator="bins"),
    "v_information": v_information,
    "bottleneck_degree": lambda x, label: bottleneck_degree(x, label, estimator="mc"),
}


@pytest.mark.truth("the same measure of the labelled rows alone")
@pytest.mark.parametrize("name", FIGURES)
def test_rows_without_a_label_are_left_out_and_flagged(name):
    draw = torch.Generator().manual_seed(0)
    label = torch.arange(120) % 3
    x = torch.randn(120, 4, generator=draw) + label[:, None]
    known = FIGURES[name](x, label)
    label[90:] = -1
    some, less = FIGURES[name](x, label), FIGURES[name](x[:90], label[:90])
    assert some.value == pytest.approx(less.value, abs=1e-12)
    assert some.n == 90
    assert "unlabelled" in some.flags
    assert "unlabelled" not in (*known.flags, *less.flags)
