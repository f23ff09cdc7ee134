import pytest
import torch
from torch import Tensor

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


def odd_rows() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 48, generator=draw)
    massive, sometimes, spread = x.clone(), x.clone(), x.double()
    massive[:, 7] *= 1e4
    sometimes[::3, 7] += 1e4
    spread[::2] *= 1e-4
    return {
        "plain": x,
        "offset": x + 1e4,
        "massive unit": massive,
        "a unit that is massive in some rows": sometimes,
        "collinear": x[:, :1] @ x[:1] + 1e-3 * x,
        "copies": x[torch.arange(600) // 3],
        "near copies": x[torch.arange(600) // 3] + 1e-5 * x,
        "tiny": x * 1e-25,
        "large": x.double() * 1e200,
        "tiny and large": spread,
        "constant": 0 * x + 3,
    }


@pytest.mark.truth("all distances in float64, sorted")
@pytest.mark.parametrize("name", odd_rows())
def test_candidates_from_products_miss_no_neighbour(name: str) -> None:
    x = odd_rows()[name]
    for k, group in ((1, torch.arange(600)), (7, torch.arange(600) // 2)):
        far, index = nearest(x, x, k, group=group, group2=group)
        every = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
        every = every.masked_fill(group[:, None] == group, torch.inf)
        torch.testing.assert_close(far, every.sort(dim=1).values[:, :k], rtol=1e-12, atol=0)
        torch.testing.assert_close(every.gather(1, index), far, rtol=1e-12, atol=0)
