"""Runs in the environment of other libraries of losses: theirs and ours on the same rows."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.against import against
from benchmarks.child import added_peak
from benchmarks.environments import peer_version
from benchmarks.standin import register
from sonde.layers import VectorQuantizer
from sonde.train import Align, Contrast

TEMPERATURE = 0.2
Arm = Callable[[], Tensor]
PACKAGES = {
    "views, lightly": "lightly",
    "views, pytorch-metric-learning": "pytorch-metric-learning",
    "labels, pytorch-metric-learning": "pytorch-metric-learning",
    "cosine, lightly": "lightly",
    "codes": "vector-quantize-pytorch",
}


def arms(what: str, n: int, dim: int, n_codes: int = 0) -> tuple[Arm, Arm]:
    """Return ours and the peer's, each a value after its backward pass."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=draw)
    if what == "codes":
        return _codes(x, n_codes)
    x.requires_grad_()
    half, view = n // 2, torch.arange(n) // (n // 2)
    example, label = torch.arange(n) % half, torch.arange(n) % 16
    ours = Contrast(TEMPERATURE)
    if what == "cosine, lightly":
        register()
        cosine = importlib.import_module("lightly.loss").NegativeCosineSimilarity()
        align = Align()
        return (
            lambda: _backward(align(x[:half], x[half:].detach()), x),
            lambda: _backward(cosine(x[:half], x[half:].detach()), x),
        )
    if what == "views, lightly":
        register()
        theirs = importlib.import_module("lightly.loss").NTXentLoss(TEMPERATURE)
        return (
            lambda: _backward(ours(x, view=view), x),
            lambda: _backward(theirs(x[:half], x[half:]), x),
        )
    peer: Any = importlib.import_module("pytorch_metric_learning.losses")
    theirs = peer.SupConLoss(TEMPERATURE)  # their NTXentLoss asks for 68 GB of 4,096 rows
    if what == "labels, pytorch-metric-learning":
        return lambda: _backward(ours(x, label), x), lambda: _backward(theirs(x, label), x)
    return lambda: _backward(ours(x, view=view), x), lambda: _backward(theirs(x, example), x)


def _codes(x: Tensor, n_codes: int) -> tuple[Arm, Arm]:
    peer: Any = importlib.import_module("vector_quantize_pytorch")
    theirs = peer.VectorQuantize(x.shape[1], n_codes, decay=0.99, threshold_ema_dead_code=1)
    ours = VectorQuantizer(x.shape[1], n_codes)
    ours.codes.data.copy_(theirs.codebook)
    return lambda: ours(x), lambda: theirs(x[None])[0][0]


def _backward(value: Tensor, x: Tensor) -> Tensor:
    x.grad = None
    value.backward()
    return value.detach()


def times(what: str, rounds: int, **shape: Any) -> dict[str, Any]:
    """Return our time over the peer's, and how far the first values are apart."""
    ours, theirs = arms(what, **shape)
    apart = float((ours() - theirs()).abs().max())
    version = peer_version(PACKAGES[what])
    return against(ours, theirs, rounds) | {"apart": apart, "version": version}


def memory(what: str, peer: bool, **shape: Any) -> float:
    """Return by how many MiB one call raises the memory of this process."""
    for arm in arms(what, **shape | {"n": 64}):
        arm()  # loads what a first call loads
    return added_peak(arms(what, **shape)[peer])
