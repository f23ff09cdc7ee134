"""The picture that judges is none of those that train; the filter; the unit is the picture."""

import pytest
import torch
from scipy.stats import ttest_1samp

from sonde_studies._photographs import photographs, through_filter
from sonde_studies.recolour import Side, accuracies, cleared


@pytest.mark.truth("planted: in each picture the other half is called changed")
def test_heads_know_nothing_of_the_pictures_that_they_judge():
    """A head that saw the picture would be right; one that saw the other alone errs always."""
    draw = torch.Generator().manual_seed(0)
    sides = []
    for flip in (False, True):
        own = torch.rand(30, 3, 40, 40, generator=draw)
        grey = own.mean(1, keepdim=True) + 0.1 * own
        mixed = torch.arange(30) % 3 == 0
        made = torch.where(mixed[:, None, None, None], grey, own)
        sides.append(Side(own, made, mixed != flip))
    folds = [torch.tensor([1]), torch.tensor([0])]
    assert accuracies("channels", sides, folds, lambda s: s.made).tolist() == [0.0, 0.0]
    alike = [sides[0], Side(sides[1].plain, sides[1].made, ~sides[1].changed)]
    assert accuracies("channels", alike, folds, lambda s: s.made).tolist() == [1.0, 1.0]
    judged = accuracies("channels", alike, folds, lambda s: s.plain)
    assert judged.tolist() == pytest.approx([2 / 3, 2 / 3])  # all are called unchanged


@pytest.mark.truth("scipy's t test")
def test_a_figure_is_what_the_interval_over_pictures_clears_nought_by():
    values = torch.tensor([0.31, 0.12, 0.11, 0.2, 0.47], dtype=torch.float64)
    low = ttest_1samp(values.numpy(), 0.0).confidence_interval(0.95).low
    assert low > 0
    assert cleared(values) == pytest.approx(low)
    assert cleared(-values) == pytest.approx(-low)
    assert cleared(values - 0.2) == 0.0


@pytest.mark.truth("linear interpolation reproduces a plane")
def test_the_filter_measures_one_colour_and_interpolates_the_others():
    line, column = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    planes = torch.stack([0.01 * line + 0.02 * column, 0.5 - 0.03 * column, 0.02 * line])
    small = (planes[:, ::2, ::2] + planes[:, 1::2, 1::2]) / 2
    assert torch.allclose(through_filter(planes)[:, 1:-1, 1:-1], small[:, 1:-1, 1:-1], atol=1e-6)
    x = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(1))
    small = x.unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
    made = through_filter(x)
    kept = (made - small).abs() < 1e-6
    measured = torch.zeros(3, 6, 8, dtype=torch.bool)
    measured[0, ::2, ::2] = measured[2, 1::2, 1::2] = True
    measured[1, ::2, 1::2] = measured[1, 1::2, ::2] = True
    assert torch.equal(kept, measured)
    assert float(made[0, 0, 1]) == pytest.approx(float(small[0, 0, [0, 2]].mean()))
    assert float(made[2, 2, 2]) == pytest.approx(float(small[2][[1, 1, 3, 3], [1, 3, 1, 3]].mean()))


def test_ten_pictures_show_ten_scenes():
    shown = photographs()
    assert len(shown) == 10
    assert all(x.shape[0] == 3 and min(x.shape[1:]) >= 300 for x in shown.values())
    assert all(0.0 <= float(x.min()) < float(x.max()) <= 1.0 for x in shown.values())
