"""Rank exchanges of two blocks by the weights alone: in training, blocks next to each other agree.

The size of a norm's gain, of a bias or of a weight matrix changes little from a block to the next.
Two blocks that stand in each other's place make jumps, and the exchange that undoes them removes
most of the jumps. This costs no forward pass, so that a large model needs to try only few pairs.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

LEAST_BLOCKS = 4
"""With fewer blocks, every pair is next to most others."""
TINY = 1e-12


def pairs_by_jumps(
    modules: Mapping[str, nn.Module], blocks: Sequence[str]
) -> list[tuple[tuple[str, str], float]]:
    """Return pairs of blocks of equal shapes, with the part of all jumps that exchanging removes.

    Most first. Blocks of other shapes cannot stand in each other's place; they are compared with
    blocks of their own shapes.

    Parameters
    ----------
    modules : mapping of str to nn.Module
    blocks : sequence of str
        Names of blocks, by depth.
    """
    pairs: list[tuple[tuple[str, str], float]] = []
    for names in _of_equal_shapes(modules, blocks):
        x = _statistics([modules[name] for name in names])
        whole = _jumps(x)
        for i, j in itertools.combinations(range(len(names)), 2):
            order = [*range(len(names))]
            order[i], order[j] = j, i
            few = len(names) < LEAST_BLOCKS or whole <= 0
            removed = 0.0 if few else 1 - _jumps(x[order]) / whole
            pairs.append(((names[i], names[j]), removed))
    return sorted(pairs, key=lambda one: -one[1])


def _of_equal_shapes(modules: Mapping[str, nn.Module], blocks: Sequence[str]) -> list[list[str]]:
    """Return lists of blocks whose parameters have equal names and shapes."""
    by_shape: dict[tuple[object, ...], list[str]] = {}
    for name in blocks:
        module = modules[name]
        shapes = tuple((n, tuple(p.shape)) for n, p in module.named_parameters())
        by_shape.setdefault((type(module), shapes), []).append(name)
    return list(by_shape.values())


def _statistics(blocks: Sequence[nn.Module]) -> Float[Tensor, "block feature"]:
    """Return the sizes of the parameters of each block, and the means of vectors, standardised."""
    rows: list[list[float]] = []
    for block in blocks:
        row: list[float] = []
        for parameter in block.parameters():
            if parameter.is_meta or not parameter.is_floating_point():
                continue
            x = parameter.detach()
            norm = float(torch.linalg.vector_norm(x, dtype=torch.float32))
            row.append(math.log(max(norm, TINY)))
            row += [float(x.float().mean())] if x.ndim == 1 else []
        rows.append(row)
    x = torch.tensor(rows, dtype=torch.float64)
    if len(x) < 2:
        return x[:, :0]
    x = x[:, torch.isfinite(x).all(0)]
    spread = x.std(0)
    moves = spread > TINY
    return (x[:, moves] - x[:, moves].mean(0)) / spread[moves]


def _jumps(x: Float[Tensor, "block feature"]) -> float:
    """Return the sum of distances between blocks that follow each other."""
    return float((x[1:] - x[:-1]).abs().sum())
