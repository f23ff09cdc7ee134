"""Runs in a process of its own, a peer's environment where there is one: one measure, two ways."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.against import against
from benchmarks.child import added_peak
from sonde.measure import mutual_knn, two_nn
from sonde.measure._ksg import ksg_terms, without_ties
from sonde.stats import nearest

K, NEAR = 10, 4


def drawn(n: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return two sites that share half of their variance."""
    x, noise = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(0))
    return x, (0.5**0.5) * (x + noise)


def _knn(x: Tensor, y: Tensor) -> float:
    return float(mutual_knn(x, y, k=K, m=len(x)))


def _knn_dense(x: Tensor, y: Tensor) -> float:
    near = []
    for rows in (x, y):
        unit = functional.normalize(rows, dim=1)
        alike = (unit @ unit.T).fill_diagonal_(-2.0)
        near.append(alike.argsort(dim=1, descending=True)[:, :K])
    return float((near[0][:, :, None] == near[1][:, None]).sum()) / (len(x) * K)


def _two_nn(x: Tensor, y: Tensor) -> float:
    return float(two_nn(x, m=len(x)))


def _two_nn_value(x: Tensor, y: Tensor) -> float:
    """Return the dimension alone, without its error, its null, and that of half of the rows."""
    own = torch.arange(len(x))
    near = nearest(x, x, 2, group=own, group2=own)[0]
    return (len(x) - 1) / float(torch.log(near[:, 1] / near[:, 0]).sum())


def _skdim(x: Tensor, y: Tensor) -> float:
    return float(import_module("skdim").id.TwoNN().fit(x.double().numpy()).dimension_)


def _ksg(x: Tensor, y: Tensor) -> float:
    sites = [without_ties(z.double(), i) for i, z in enumerate((x, y))]
    return float(ksg_terms(sites[0], sites[1], torch.arange(len(x)), NEAR).mean())


def _npeet(x: Tensor, y: Tensor) -> float:
    return float(import_module("npeet_plus").mi(x.double().numpy(), y.double().numpy(), k=NEAR))


OURS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "neighbours": _knn,
    "two-nn": _two_nn_value,
    "two-nn-whole": _two_nn,
    "ksg": _ksg,
}
PEERS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "": _knn_dense,
    "dense": _knn_dense,
    "scikit-dimension": _skdim,
    "npeet-plus": _npeet,
}


def times(what: str, peer: str, n: int, dim: int, rounds: int) -> dict[str, Any]:
    """Return our time over the other's, and both values."""
    x, y = drawn(n, dim)
    kept: dict[str, float] = {}
    found = against(
        lambda: kept.update(value=OURS[what](x, y)),
        lambda: kept.update(other=PEERS[peer](x, y)),
        rounds,
    )
    return found | kept


def memory(what: str, peer: str, n: int, dim: int) -> dict[str, float]:
    """Return the MiB that one way takes beyond the rows; ours without a peer."""
    x, y = drawn(n, dim)
    arm = PEERS[peer] if peer else OURS[what]
    arm(*drawn(64, dim))  # imports and buffers of libraries
    return {"mib": added_peak(lambda: arm(x, y))}
