import pytest
import torch
from scipy.stats import norm, t

from sonde.stats.halves import half_error, random_halves


@pytest.mark.truth("standard error of a mean, sd / sqrt(n)")
def test_spread_over_halves_is_the_standard_error():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    masks = random_halves(torch.arange(4000), 200)
    values = torch.stack([x[m].mean() for m in masks])
    assert float(half_error(values, torch.arange(4000))) == pytest.approx(
        float(x.std()) / 4000**0.5, rel=0.15
    )


def test_groups_stay_whole():
    group = torch.tensor([5, 9, 5, 7, 7, 3])
    for mask in random_halves(group):
        assert mask[0] == mask[2]
        assert mask[3] == mask[4]
        assert len(torch.unique(group[mask])) == 2


@pytest.mark.truth(
    "Student's law with Kish's number of groups, 100^2 / 5,100 of one half and singles"
)
def test_uneven_groups_widen_as_fewer():
    group = torch.cat([torch.zeros(50, dtype=torch.long), torch.arange(1, 51)])
    values = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    n = 100**2 / (50**2 + 50)
    wider = float(half_error(values, group) / values.std())
    assert wider == pytest.approx(float(t.ppf(0.975, n - 1) / norm.ppf(0.975)))
