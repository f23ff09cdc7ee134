"""Clusters of the units of two nets, chosen on half of the rows and judged on the others."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.measure import correlation_match

CLUSTERS = 8


def judge_clusters(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"], seed: int
) -> dict[str, float]:
    """Return how much units of one cluster correlate, and what a cluster explains of a unit.

    Both beside chance: clusters of the same sizes with shuffled units, and as many units by lot
    that contain the unit's most correlated partner.

    Parameters
    ----------
    x, y : Float[Tensor, "row _"]
        States of the same rows in both nets.
    seed : int
        Draws the halves of the rows, the shuffled clusters and the units by lot.
    """
    draw = torch.Generator().manual_seed(seed)
    fit, judge = torch.randperm(len(x), generator=draw).tensor_split(2)
    x, y = (v.double()[:, (v[fit].std(0) > 0) & (v[judge].std(0) > 0)] for v in (x, y))
    found = correlation_match(x[fit], y[fit], method="clusters", n_clusters=CLUSTERS)
    partner = correlation_match(x[fit], y[fit], method="soft").partner
    size = torch.corrcoef(torch.cat([x[judge], y[judge]], 1).T).abs()[: x.shape[1], x.shape[1] :]
    same = found.cluster[:, None] == found.cluster2
    lots = (torch.randperm(n, generator=draw) for n in same.shape)
    shuffled = same[next(lots)][:, next(lots)]
    by_cluster, by_lot = list[float](), list[float]()
    for unit in torch.nonzero(same.any(1)).flatten().tolist():
        first = torch.rand(same.shape[1], generator=draw)
        first[partner[unit]] = -1.0
        some = torch.zeros_like(same[unit])
        some[first.argsort()[: int(same[unit].sum())]] = True
        for shares, units in ((by_cluster, same[unit]), (by_lot, some)):
            shares.append(_explained(x[:, unit], y[:, units], fit, judge))
    return {
        "in clusters": float(size[same].mean()),
        "in shuffled clusters": float(size[shuffled].mean()),
        "by the cluster": sum(by_cluster) / len(by_cluster),
        "by lot": sum(by_lot) / len(by_lot),
        "units in a cluster": float(same.sum(1)[same.any(1)].double().mean()),
    }


def _explained(
    unit: Float[Tensor, "row"], others: Float[Tensor, "row dim2"], fit: Tensor, judge: Tensor
) -> float:
    """Return the share of a unit's variance that least squares of the first rows explain."""
    rows = torch.cat([others, torch.ones(len(others), 1).double()], 1)
    weight = torch.linalg.lstsq(rows[fit], unit[fit, None], driver="gelsd").solution[:, 0]
    left = (unit[judge] - rows[judge] @ weight).square().mean()
    return 1.0 - float(left / unit[judge].var(correction=0))
