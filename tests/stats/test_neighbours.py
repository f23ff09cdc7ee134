import pytest
import torch

from sonde.stats import nearest


@pytest.mark.truth("all differences, one pair of groups at a time")
@pytest.mark.parametrize("chunk", [7, 1024])
def test_each_other_group_enters_by_its_nearest_row(chunk):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (60, 3), generator=generator).double()  # many equal distances
    group = torch.randint(0, 9, (60,), generator=generator) * 5
    found, index = nearest(x, x, 8, group=group, group2=group, each_once=True, chunk=chunk)
    distance = (x[:, None] - x).norm(dim=2)
    for i in range(60):
        others = [g for g in group.unique().tolist() if g != int(group[i])]
        want = sorted(float(distance[i, group == g].min()) for g in others)
        torch.testing.assert_close(found[i], torch.tensor(want, dtype=torch.float64))
        assert sorted(group[index[i]].tolist()) == others
