"""Weights that no training leaves: rounded to few values, cut off at a bound, or copied.

These are facts of the stored numbers, so that no row is run and nothing is estimated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from sonde.findings.evidence.record import Evidence
from sonde.tap import LiveStream

LEAST: Final = 64
"""Fewest entries of a weight that is tested."""
LEVELS: Final = 16
"""Most distinct values of a weight that was rounded: those of 4 bits."""
EACH: Final = 8
"""Fewest entries for each of these values."""
AT_BOUND: Final = 0.05
"""Fraction of the entries that lie exactly at the bound of a weight that was cut off."""

Alteration = Literal["rounded", "cut", "copied"]


@dataclass(frozen=True)
class Altered:
    """A weight that training does not leave like this.

    Parameters
    ----------
    path, name : str
        The module, and its parameter.
    kind : {"rounded", "cut", "copied"}
    figure : float
        Number of distinct values, or fraction of the entries at the bound; 1 for a copy.
    other : str
        For a copy: the module that holds the same numbers.
    """

    path: str
    name: str
    kind: Alteration
    figure: float
    other: str = ""


@dataclass(frozen=True)
class AlteredWeights:
    """Weights that no training leaves, and the number of weights tested."""

    found: tuple[Altered, ...] = ()
    n: int = 0


def altered_weights(stream: LiveStream, _: Evidence | None = None) -> AlteredWeights:
    """Return the weights of the modules that ran which are rounded, cut off or copied."""
    weights = dict(_weights(stream))
    altered = list(_copies(weights))
    for (path, name), weight in weights.items():
        if (one := _in_itself(path, name, weight)) is not None:
            altered.append(one)
    return AlteredWeights(tuple(altered), len(weights))


def _weights(stream: LiveStream) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Yield the matrices and kernels of the modules that ran; a shared weight once."""
    seen: set[int] = set()
    for path, module in stream.probe.names.modules.items():
        for name, weight in module.named_parameters(recurse=False):
            is_able = not weight.is_meta and weight.is_floating_point() and weight.ndim >= 2
            if not is_able or not stream.probe.calls(path) or weight.numel() < LEAST:
                continue
            if weight.data_ptr() not in seen:
                seen.add(weight.data_ptr())
                yield (path, name), weight.detach()


def _in_itself(path: str, name: str, weight: Tensor) -> Altered | None:
    """Return the alteration that the entries of one weight show."""
    size = weight.abs().flatten()
    top = size.max()
    share = float((size == top).double().mean())
    if not bool(top > 0) or _is_repeated(weight):
        return None  # zeros and constants are other faults, or masks
    few = torch.unique(weight.flatten()[: LEVELS * EACH])
    if len(few) <= LEVELS:
        values = torch.unique(weight)
        if 2 < len(values) <= LEVELS and len(size) >= EACH * len(values):
            return Altered(path, name, "rounded", float(len(values)))
    is_cut = share >= AT_BOUND and len(torch.unique(weight)) > LEVELS
    return Altered(path, name, "cut", share) if is_cut else None


def _copies(weights: Mapping[tuple[str, str], Tensor]) -> Iterator[Altered]:
    """Yield the weights that equal an earlier one bit by bit, without sharing its memory."""
    first: dict[tuple[object, ...], tuple[str, str]] = {}
    for (path, name), weight in weights.items():
        total = float(weight.double().sum())
        key = (tuple(weight.shape), weight.dtype, total, float(weight.double().square().sum()))
        earlier = first.setdefault(key, (path, name))
        if earlier == (path, name) or not torch.equal(weights[earlier], weight):
            continue
        if not _is_repeated(weight):
            yield Altered(path, name, "copied", 1.0, earlier[0])


def _is_repeated(weight: Tensor) -> bool:
    """Return whether all rows, or all columns, are equal.

    An initialiser writes such weights on purpose: constants, and the decay rates of a state-space
    model, the same in every channel and layer.
    """
    return bool((weight == weight[:1]).all()) or bool((weight == weight[:, :1]).all())
