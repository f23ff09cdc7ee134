"""Runs in the environment of concept-erasure: its eraser and ours on the same rows."""

import importlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.against import against
from benchmarks.child import added_peak
from benchmarks.environments import peer_version
from sonde.core import EditContext, Site
from sonde.edit import Leace

CLASSES = 10


def rows(n: int, width: int) -> tuple[Tensor, Tensor]:
    """Return rows with a gap for each class."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, CLASSES, (n,), generator=generator)
    x = torch.randn(n, width, generator=generator)
    x[:, :CLASSES] += torch.nn.functional.one_hot(label, CLASSES)
    return x, label


def ours(x: Tensor, label: Tensor) -> Tensor:
    """Return erased rows."""
    return Leace().fit(x, label).edit().apply(x, Site("x"), EditContext())


def theirs(x: Tensor, label: Tensor, **options: Any) -> Tensor:
    """Return the peer's erased rows."""
    fitter: Any = importlib.import_module("concept_erasure").LeaceFitter
    z = torch.nn.functional.one_hot(label, CLASSES).to(x)
    return fitter.fit(x, z, **options).eraser(x)


def times(n: int, width: int, rounds: int) -> dict[str, Any]:
    """Return the times of fit and apply, and how far the two are apart without its shrinkage."""
    x, label = rows(n, width)
    found = against(lambda: ours(x, label), lambda: theirs(x, label), rounds)
    plain = theirs(x.double(), label, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9)
    apart = float((ours(x, label) - plain).abs().max() / x.std())
    return found | {"apart": apart, "version": peer_version("concept-erasure")}


def memory(n: int, width: int, peer: bool) -> float:
    """Return by how many MiB fit and apply raise the memory of this process."""
    x, label = rows(n, width)
    (theirs if peer else ours)(*rows(CLASSES * 4, width))
    return added_peak(lambda: (theirs if peer else ours)(x, label))
