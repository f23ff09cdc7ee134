"""Interleaved arms, process time, ratios of each round and the spread of a repeated base."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PLAIN, AGAIN = "plain", "plain again"
WARM_UPS = 2


@dataclass(frozen=True)
class Ratio:
    """A median of ratios, and how far the repeated base strayed from 1 in the same rounds.

    Parameters
    ----------
    median : float
    spread : float
        Half the distance between the 10th and the 90th percentile of the repeated base.
    low, high : float
        Least and largest ratio of the repeated base.
    rounds : int
    """

    median: float
    spread: float
    low: float
    high: float
    rounds: int

    @property
    def noise(self) -> str:
        """Return what the repeated base did, for a note."""
        return f"plain again {self.low:.3f}-{self.high:.3f}"


def interleaved(
    arms: Mapping[str, Callable[[], object]], rounds: int, warm_ups: int = WARM_UPS
) -> dict[str, list[float]]:
    """Return seconds of process time of every arm in every round; the order turns each round."""
    names = list(arms)
    for _ in range(warm_ups):
        for name in names:
            arms[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.process_time()
            arms[name]()
            taken[name].append(time.process_time() - began)
    return taken


def medians(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each arm, after one round that imports what they need."""
    taken = interleaved(arms, rounds, warm_ups=1)
    return {name: statistics.median(each) for name, each in taken.items()}


def ratio_of(
    taken: Mapping[str, Sequence[float]], arm: str, base: str = PLAIN, again: str = AGAIN
) -> Ratio:
    """Return the ratio of an arm to the base."""
    return ratios(taken[arm], taken[base], taken[again])


def ratios(arm: Sequence[float], base: Sequence[float], again: Sequence[float]) -> Ratio:
    """Return the median of per-round ratios, and the spread of the repeated base."""
    found = [a / b for a, b in zip(arm, base, strict=True)]
    noise = [a / b for a, b in zip(again, base, strict=True)]
    return Ratio(statistics.median(found), spread_of(noise), min(noise), max(noise), len(found))


def spread_of(values: Sequence[float]) -> float:
    """Return half the distance between the 10th and the 90th percentile."""
    if len(values) < 2:
        return 0.0
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return (cuts[-1] - cuts[0]) / 2
