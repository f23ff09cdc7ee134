"""Hebbian couplings learned from noisy examples of diluted patterns, told which or not told."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from sonde.layers import hebbian_couplings, hebbian_recall
from sonde_studies.arms import note_for

UNITS, PATTERNS, BLANKS, QUALITY = 500, 3, 0.3, 0.3
REPEATS, LEAST = 10, 0.9
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Way = Literal["told", "not told"]
WAYS: tuple[Way, ...] = ("told", "not told")


def example_rows(stored: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """Return examples (pattern, example, unit): each sign is kept with a chance of (1 + r) / 2."""
    keeps = torch.rand(len(stored), n, stored.shape[1], generator=draw) < (1 + QUALITY) / 2
    return torch.where(keeps, stored[:, None], -stored[:, None])


def learned_couplings(examples: Tensor, way: Way) -> Tensor:
    """Return the couplings of means of each pattern's examples, or of all examples as they are."""
    if way == "told":
        return hebbian_couplings(examples.mean(1))
    return hebbian_couplings(examples.flatten(0, 1)) / examples.shape[1]


def learning_curves(seed: int, counts: Sequence[int]) -> dict[Way, dict[int, Tensor]]:
    """Return the overlaps with all patterns, by way and number of examples of a pattern.

    A state starts at the first pattern with a tenth of its signs flipped and blanks filled by lot.
    """
    draw = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(2, (PATTERNS, UNITS), generator=draw) - 1
    stored = signs * (torch.rand(signs.shape, generator=draw) >= BLANKS)
    lot = 2.0 * torch.randint(2, (UNITS,), generator=draw) - 1
    start = torch.where(stored[0] == 0, lot, stored[0])
    start = torch.where(torch.rand(UNITS, generator=draw) < 0.1, -start, start)
    examples = example_rows(stored, counts[-1], draw)
    found: dict[Way, dict[int, Tensor]] = {way: {} for way in WAYS}
    for way in WAYS:
        for n in counts:
            held = hebbian_recall(learned_couplings(examples[:, :n], way), start, 20)
            found[way][n] = stored @ held / UNITS
    return found


def threshold(curve: Mapping[int, float], least: float) -> float:
    """Return the doublings of examples at which the first overlap first reaches a value.

    Between two numbers of examples the curve is taken to be straight over doublings.
    """
    counts, values = list(curve), list(curve.values())
    for i, value in enumerate(values):
        if value >= least:
            if i == 0:
                return math.log2(counts[0])
            share = (least - values[i - 1]) / (value - values[i - 1])
            low, high = math.log2(counts[i - 1]), math.log2(counts[i])
            return low + share * (high - low)
    return math.log2(counts[-1]) + 1.0


def taught_and_untaught(seed: int, tiny: bool) -> dict[str, float]:
    """Return the figures of claims about learning with a teacher and without one."""
    counts = COUNTS[:2] if tiny else COUNTS
    runs = [learning_curves(REPEATS * seed + i, counts) for i in range(REPEATS)]
    firsts = {
        way: {
            n: sum(float(run[way][n][0]) for run in runs) / (REPEATS * (1 - BLANKS)) for n in counts
        }
        for way in WAYS
    }
    seconds = {
        way: sum(float(run[way][counts[-1]][1:].abs().max()) for run in runs) / REPEATS
        for way in WAYS
    }
    needs = {way: threshold(firsts[way], LEAST) for way in WAYS}
    for way in WAYS:
        note_for(way, rows=PATTERNS * counts[-1], bytes=4 * UNITS**2)
    for name, n in (("256 examples", counts[-1]), ("1 example", 1)):
        note_for(f"not told, {name}", rows=PATTERNS * n, bytes=4 * UNITS**2)
    told, untold = WAYS
    return {
        "learned": firsts[untold][counts[-1]] - firsts[untold][1],
        "threshold": 0.25 - (needs[untold] - needs[told]),
        "tasks": 0.02 - abs(seconds[told] - seconds[untold]),
        **{f"doublings of examples needed | {way}": v for way, v in needs.items()},
        **{f"second overlap | {way}": v for way, v in seconds.items()},
        **{f"first overlap, {way} | {n}": v for way in WAYS for n, v in firsts[way].items()},
    }
