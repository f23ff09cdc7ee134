"""How far training has moved each block: its spectra, weight sizes and norms."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from sonde.findings.evidence.modules.fresh_weights import spectrum_edge
from sonde.findings.evidence.record import Evidence
from sonde.tap import LiveStream
from sonde.tap.model.blocks import block_paths
from sonde.weights.dense import own_weights

LEAST: Final = 4
TINY: Final = 1e-3


@dataclass(frozen=True)
class BlockTraining:
    """Statistics of the blocks, in order of execution.

    Parameters
    ----------
    paths : tuple of str
    edge : tuple of float
        Mean logarithm of the largest singular value over that of random entries of equal size.
    size : tuple of float
        Mean logarithm of the root mean square of weight matrices.
    moved : tuple of float
        Logarithm of the root mean square distance of norm weights from 1, where they start.
    """

    paths: tuple[str, ...]
    edge: tuple[float, ...]
    size: tuple[float, ...]
    moved: tuple[float, ...]


def compare_blocks(stream: LiveStream, _: Evidence) -> BlockTraining | None:
    """Return how far training has moved blocks of one class; None if there are fewer than four."""
    modules = stream.probe.names.modules
    paths = block_paths(stream.probe.names, stream.probe)
    if len(paths) < LEAST or len({type(modules[p]) for p in paths}) > 1:
        return None
    figures = [list(_of_weights(modules[p])) for p in paths]
    if not all(figures):
        return None
    edge, size = ([sum(f[i] for f in fs) / len(fs) for fs in figures] for i in (0, 1))
    return BlockTraining(tuple(paths), tuple(edge), tuple(size), tuple(_moved(modules, paths)))


def _of_weights(block: nn.Module) -> Iterator[tuple[float, float]]:
    for module in block.modules():
        held = own_weights(module).get("weight")
        weight = None if held is None or len(held.shape) < 2 else held.read()
        if weight is None or weight.is_meta or not weight.is_floating_point():
            continue
        matrix = weight.flatten(1)
        spread = float(matrix.float().square().mean().sqrt())
        if spread > 0 and min(matrix.shape) > 1:
            yield math.log(spectrum_edge(matrix, spread)[0]), math.log(spread)


def _moved(modules: dict[str, nn.Module], paths: Sequence[str]) -> Iterator[float]:
    for path in paths:
        norms = [w for m in modules[path].modules() if (w := _norm_weight(m)) is not None]
        if norms:
            yield math.log(TINY + float((torch.cat(norms) - 1).square().mean().sqrt()))


def _norm_weight(module: nn.Module) -> Tensor | None:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    is_norm = "Norm" in type(module).__name__ and weight is not None and weight.ndim == 1
    return weight.detach().float() if is_norm and weight is not None else None


def less_trained(found: BlockTraining, ratio: float) -> list[int]:
    """Return the blocks that at least two statistics separate as the lower ones.

    A figure sets blocks apart if its largest gap is ``ratio`` times as wide as the range of values
    on either side of the gap.
    """
    figures = [f for f in (found.edge, found.size, found.moved) if len(f) == len(found.paths)]
    apart = [_lower(values, ratio) for values in figures]
    for one, other in itertools.combinations([a for a in apart if a], 2):
        if one == other:
            return sorted(one)
    return []


def _lower(values: Sequence[float], ratio: float) -> set[int]:
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranked = [values[i] for i in order]
    gaps = [b - a for a, b in itertools.pairwise(ranked)]
    k = max(range(len(gaps)), key=lambda i: gaps[i])
    wide = max(ranked[k] - ranked[0], ranked[-1] - ranked[k + 1], 1e-9)
    return set(order[: k + 1]) if gaps[k] >= ratio * wide else set()
