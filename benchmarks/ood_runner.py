"""Runs in the environment of pytorch-ood: detectors on given rows, ours and theirs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.against import against
from benchmarks.child import MIB, added_peak, resident
from benchmarks.environments import peer_version
from sonde.detect import KNN, Mahalanobis

CLASSES, NEIGHBOUR = 10, 50
Detect = Callable[[Tensor, Tensor, Tensor], Tensor]


def made(n: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows around ten class means, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(99))
    label = torch.randint(CLASSES, (n,), generator=generator)
    return torch.randn(n, width, generator=generator).add_(means[label]), label


def mahalanobis(x: Tensor, label: Tensor, fresh: Tensor) -> Tensor:
    """Return our scores of fresh rows."""
    return Mahalanobis().fit(x, label).score(fresh)


def their_mahalanobis(x: Tensor, label: Tensor, fresh: Tensor) -> Tensor:
    """Return the peer's scores of fresh rows."""
    return _peer().Mahalanobis(None).fit_features(x, label).predict_features(fresh)


def knn(x: Tensor, label: Tensor, fresh: Tensor) -> Tensor:
    """Return our scores against the default sample."""
    return KNN(k=NEIGHBOUR).fit(x).score(fresh)


def knn_whole(x: Tensor, label: Tensor, fresh: Tensor) -> Tensor:
    """Return our scores against all rows, as the peer keeps them."""
    return KNN(k=NEIGHBOUR, m=len(x)).fit(x).score(fresh)


def their_knn(x: Tensor, label: Tensor, fresh: Tensor) -> Tensor:
    """Return the peer's scores."""
    return _peer().KNN(None, k=NEIGHBOUR).fit_features(x, label).predict_features(fresh)


def _peer() -> Any:
    from benchmarks.standin import register

    register()
    from pytorch_ood import detector

    return detector


ARMS: dict[str, tuple[Detect, Detect]] = {
    "mahalanobis": (mahalanobis, their_mahalanobis),
    "knn": (knn, their_knn),
    "knn_whole": (knn_whole, their_knn),
}


def times(method: str, n: int, width: int, n_fresh: int, rounds: int) -> dict[str, Any]:
    """Return our time to fit and score over the peer's, and how well the scores' orders agree."""
    (x, label), (fresh, _) = made(n, width), made(n_fresh, width, seed=1)
    mine, theirs = ARMS[method]
    kept: dict[str, Tensor] = {}
    found = against(
        lambda: kept.update(ours=mine(x, label, fresh)),
        lambda: kept.update(theirs=theirs(x, label, fresh)),
        rounds,
    )
    pair = torch.stack([kept["ours"].double(), kept["theirs"].double()])
    found["correlation"] = float(torch.corrcoef(pair)[0, 1])
    return found | {"version": peer_version("pytorch-ood")}


def memory(method: str, n: int, width: int, n_fresh: int, theirs: bool = False) -> dict[str, float]:
    """Return the MiB that a fit and scores add, and all that the process holds beyond the rows."""
    (x, label), (fresh, _) = made(n, width), made(n_fresh, width, seed=1)
    small, small_label = made(200, width)
    arm = ARMS[method][int(theirs)]
    arm(small, small_label, small)  # imports and buffers of libraries
    added = added_peak(lambda: arm(x, label, fresh))
    rows = (x.nbytes + fresh.nbytes) / MIB
    return {"added": added, "beyond": resident() - rows}
