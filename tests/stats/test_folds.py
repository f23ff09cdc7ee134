"""Folds of groups: whole, even, and the same whichever other rows take part."""

import pytest
import torch

from sonde.stats.folds import folds_of


def test_a_fold_follows_from_the_group_alone():
    draw = torch.Generator().manual_seed(0)
    names = torch.randint(-(2**62), 2**62, (400,), generator=draw)
    group = names[torch.randint(400, (3000,), generator=draw)]
    fold = folds_of(group)
    assert torch.bincount(fold).min() > 500
    for name in names[:20]:
        assert len(torch.unique(fold[group == name])) <= 1
    some = torch.randperm(3000, generator=draw)[:700]
    assert torch.equal(folds_of(group[some]), fold[some])


@pytest.mark.truth("n groups dealt in turn to min(4, n) folds")
def test_few_groups_fill_every_fold():
    draw = torch.Generator().manual_seed(1)
    for n in range(2, 30):
        group = 4 * torch.randint(-(2**60), 2**60, (n,), generator=draw).repeat(3)  # one rest by 4
        sizes = torch.bincount(folds_of(group))
        assert len(sizes) == min(4, n)
        assert sizes.max() - sizes.min() <= 3
