"""Clusters of units: planted blocks, a limit of the size, dead units, pools."""

from typing import Any

import pytest
import torch

from sonde.core import InputError, ShapeError
from sonde.engine.running import Running
from sonde.measure import UnitClusters, unit_clusters
from sonde.measure.unit_clusters import _joined


def blocks(n=500, r=0.8, seed=0, sizes=(4, 3, 5)):
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, len(sizes), generator=draw, dtype=torch.float64)
    own = torch.randn(n, sum(sizes), generator=draw, dtype=torch.float64)
    member = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = r**0.5 * shared[:, member] + (1 - r) ** 0.5 * own
    order = torch.randperm(sum(sizes), generator=draw)
    scale = torch.linspace(0.5, 3.0, sum(sizes))
    return (x * scale)[:, order] + 2.0, member[order]


@pytest.mark.truth("planted blocks of units with correlation .8")
def test_blocks_are_recovered():
    x, member = blocks()
    found = unit_clusters(x, k=3)
    same = member[:, None] == member
    assert torch.equal(found.cluster[:, None] == found.cluster, same)
    assert float(found) == pytest.approx(0.8, abs=0.05)
    assert abs(found.across) < 0.06
    assert found.stability > 0.95
    assert torch.equal(unit_clusters(1e-6 * (x - 2.0), k=3).cluster, found.cluster)
    first = [found.cluster.tolist().index(k) for k in range(3)]
    assert first == sorted(first)
    running: Any = Running(UnitClusters(k=3))
    for part in x.split(171):
        running.update(part)
    assert torch.equal(running.result().cluster, found.cluster)


def test_signs_limits_and_dead_units():
    x, member = blocks(sizes=(4, 2))
    x = torch.cat((x * torch.tensor([1.0, -1.0] * 3), torch.full((500, 2), 7.0)), 1)
    found = unit_clusters(x, k=2, absolute=True)
    same = member[:, None] == member
    assert torch.equal((found.cluster[:, None] == found.cluster)[:6, :6], same)
    assert found.cluster[6:].tolist() == [2, 2]
    signed = unit_clusters(x, k=2)
    assert not torch.equal((signed.cluster[:, None] == signed.cluster)[:6, :6], same)
    small = unit_clusters(x, k=2, largest=2, absolute=True)
    assert torch.bincount(small.cluster).max() == 2
    assert small.n_clusters == 4
    with pytest.raises(InputError, match="of at least 1, got 0"):
        unit_clusters(x, k=0)


def joined_one_by_one(distance: torch.Tensor, k: int, largest: int) -> torch.Tensor:
    """Return average-linkage clusters by a search of all pairs before each join."""
    members = [{i} for i in range(len(distance))]
    while len(members) > k:
        pairs = [
            (float(distance[sorted(a)][:, sorted(b)].mean()), i, j)
            for i, a in enumerate(members)
            for j, b in enumerate(members)
            if i < j and len(a) + len(b) <= largest
        ]
        if not pairs:
            break
        _, i, j = min(pairs)
        members[i] |= members.pop(j)
    owner = {unit: number for number, units in enumerate(members) for unit in units}
    return torch.tensor([owner[i] for i in range(len(distance))])


@pytest.mark.slow
@pytest.mark.truth("a search of all pairs of clusters before each join")
@pytest.mark.parametrize("largest", [1, 3, 7, 40])
@pytest.mark.parametrize("k", [1, 4, 40])
def test_joins_are_those_of_a_search_of_all_pairs(k, largest):
    x = torch.randn(60, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    distance = 1 - torch.corrcoef(x.T)
    found, wanted = _joined(distance, k, largest), joined_one_by_one(distance, k, largest)
    assert torch.equal(found[:, None] == found, wanted[:, None] == wanted)


@pytest.mark.truth("mean and maximum of the units of each cluster by a loop")
def test_pools():
    x, _ = blocks()
    found = unit_clusters(x, k=3)
    for how in ("mean", "max"):
        pooled = found.pool(x[:7], how)
        for k in range(3):
            part = x[:7, found.cluster == k]
            torch.testing.assert_close(
                pooled[:, k], part.mean(1) if how == "mean" else part.amax(1)
            )
    with pytest.raises(ShapeError, match="dim=12, got 3"):
        found.pool(x[:, :3])
