"""Weights that no training leaves: rounded to few values, cut off at a bound, or copied.

These are facts of the stored numbers, so that no row is run and nothing is estimated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

import torch
from torch import Tensor

from sonde.findings.evidence.record import Evidence
from sonde.tap import LiveStream
from sonde.weights.dense import DenseWeight, own_weights

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
    first: dict[tuple[object, ...], tuple[str, DenseWeight]] = {}
    copies, altered, n = list[Altered](), list[Altered](), 0
    for path, name, held in _weights(stream):
        weight, n = held.read(), n + 1
        total, squares = (float(x.sum()) for x in (weight.double(), weight.double().square()))
        key = (tuple(weight.shape), weight.dtype, total, squares)
        earlier, other = first.setdefault(key, (path, held))
        if other is not held and torch.equal(other.read(), weight) and not _is_repeated(weight):
            copies.append(Altered(path, name, "copied", 1.0, earlier))
        if (one := _in_itself(path, name, weight)) is not None:
            altered.append(one)
    return AlteredWeights((*copies, *altered), n)


def _weights(stream: LiveStream) -> Iterator[tuple[str, str, DenseWeight]]:
    """Yield the matrices and kernels of the modules that ran; a shared weight once."""
    seen: set[int] = set()
    for path, module in stream.probe.names.modules.items():
        if not stream.probe.calls(path):
            continue
        for name, held in own_weights(module).items():
            if held.is_buffer or len(held.shape) < 2 or prod(held.shape) < LEAST:
                continue
            weight = held.read()
            memory = id(held.source) if held.is_packed else weight.data_ptr()
            if not weight.is_meta and weight.is_floating_point() and memory not in seen:
                seen.add(memory)
                yield path, name, held


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


def _is_repeated(weight: Tensor) -> bool:
    """Return whether all rows, or all columns, are equal.

    An initialiser writes such weights on purpose: constants, and the decay rates of a state-space
    model, the same in every channel and layer.
    """
    return bool((weight == weight[:1]).all()) or bool((weight == weight[:, :1]).all())
