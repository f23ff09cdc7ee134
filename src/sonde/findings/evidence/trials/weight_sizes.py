"""Layers whose weights are far larger or smaller than the same layer in other blocks."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import torch

from sonde.findings.evidence.modules.fresh_weights import FreshLayers, Size, find_fresh_layers
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.anomaly_trials import MOST_ALONE, Resized, resized_weights
from sonde.findings.self_check import chosen_examples
from sonde.findings.trial_budget import counted
from sonde.tap import LiveStream
from sonde.tap.model.seeding import untouched
from sonde.tap.streams.small_batches import small_batches

NUMBER: Final = re.compile(r"\d+")
BLOCK: Final = re.compile(r"(?:(?<=^)|(?<=\.))\d+(?=\.)")
"""Number of the block that a path lies in. Norms of a plain stack of layers differ more."""
SIBLINGS, RATIO, DEVIATIONS = 4, 4.0, 6.0
ROWS, FEWEST, LONGEST, SHORTEST = 128, 16, 64, 16
PART: Final = 0.5
"""Part of the budget of trials that the two forward passes of all rows may take."""


@dataclass(frozen=True)
class SizeOutlier:
    """A layer and the root mean square of its weights over the median of its siblings."""

    path: str
    ratio: float
    n_siblings: int


def sibling_groups(
    sizes: Mapping[str, Size], least: int, number: re.Pattern[str] = NUMBER
) -> list[list[tuple[str, float]]]:
    """Return layers grouped by shape and by name without numbers, with their sizes.

    Parameters
    ----------
    sizes : mapping of path to Size
    least : int
        Fewest layers of a group.
    number : Pattern
        What is left out of a name.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[str, float]]] = {}
    for path, size in sizes.items():
        name = number.sub("*", path)
        groups.setdefault((name, size.shape), []).append((path, size.rms))
    return [g for g in groups.values() if len(g) >= least]


def all_groups(found: FreshLayers, least: int) -> list[list[tuple[str, float]]]:
    """Return groups of layers, and of norms, at the same position in all blocks."""
    inside = {path: size for path, size in found.gains.items() if BLOCK.search(path)}
    return [*sibling_groups(found.sizes, least), *sibling_groups(inside, least, BLOCK)]


def size_outliers(
    groups: Sequence[Sequence[tuple[str, float]]], ratio: float, deviations: float
) -> list[SizeOutlier]:
    """Return the layers whose size is an outlier in their group."""
    return [outlier for group in groups for outlier in _outliers(group, ratio, deviations)]


def _outliers(
    group: Sequence[tuple[str, float]], ratio: float, deviations: float
) -> list[SizeOutlier]:
    logs = [math.log(max(r, 1e-12)) for r in ratios(group)]
    middle = median(logs)
    spread = max(1.48 * median(abs(x - middle) for x in logs), math.log(1.2))
    return [
        SizeOutlier(path, math.exp(x), len(group) - 1)
        for (path, _), x in zip(group, logs, strict=True)
        if abs(x) >= math.log(ratio) and abs(x - middle) >= deviations * spread
    ]


def ratios(group: Sequence[tuple[str, float]]) -> list[float]:
    """Return the size of each layer over the median size of the others."""
    sizes = [rms for _, rms in group]
    others = [median(sizes[:i] + sizes[i + 1 :]) for i in range(len(sizes))]
    return [max(a, 1e-12) / max(b, 1e-12) for a, b in zip(sizes, others, strict=True)]


@counted
def resized(stream: LiveStream, evidence: Evidence) -> Resized | None:
    """Return the trial of outlying weights rescaled to the size of their siblings."""
    layers = evidence.get(find_fresh_layers)
    if layers is None:
        return None
    outliers = size_outliers(all_groups(layers, SIBLINGS), RATIO, DEVIATIONS)
    if not outliers:
        return None
    outliers.sort(key=lambda o: -abs(math.log(o.ratio)))
    causal = stream.model.task == "causal"
    most, least = (LONGEST, SHORTEST) if causal else (1, 1)  # tokens of a row
    n_forwards = 2 if len(outliers) == 1 else 2 + min(len(outliers), MOST_ALONE)
    able = evidence.budget.rows(ROWS * most, FEWEST * least, n_forwards, PART)
    n = max(FEWEST, able // most)
    longest = min(most, able // n) if causal else None  # texts are cut before any is left out
    chosen = chosen_examples(stream, n, evidence.data.seed)
    small = small_batches(stream.model, stream.inputs, chosen, longest)
    with untouched(stream.model.module), torch.no_grad():
        return resized_weights(stream, evidence, small, {o.path: o.ratio for o in outliers})
