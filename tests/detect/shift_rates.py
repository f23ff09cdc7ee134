"""How often a shift alarms where nothing changed."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from scipy.stats import binom, kstest
from torch import Tensor

from narrow import expect
from sonde.core.instrument import Read
from sonde.core.shift import Comparison, Shift, Side

RESAMPLES = 80
_FRESH = count(1)


def side_of(shift: Shift, x: Tensor, draw: Tensor | None = None) -> Side:
    """Return the side of rows, observed at once: quicker than a stream of arrays.

    Rows of two sides are other rows unless they are given the same draws.
    """
    keys = torch.arange(len(x)) + next(_FRESH) * 1_000_000 if draw is None else draw
    columns = {"x": x, "draw": keys, "group": keys, "group_draw": keys}
    states = {}
    for name, read in shift.reads().items():
        statistic = read.statistic if isinstance(read, Read) else read
        states[name] = statistic.observe(*(columns[c] for c in statistic.needs()))
    side = shift.result(**states)
    following = shift.then(side)
    return side if following is None else side_of(expect(Shift, following), x, keys)


def comparisons(
    shift: Shift, draw: Callable[[int], tuple[Tensor, Tensor]], times: int = RESAMPLES
) -> list[Comparison]:
    """Return the comparisons of fresh pairs of data sets."""
    found = []
    for seed in range(times):
        x, y = draw(seed)
        first = side_of(shift, x)
        found.append(first.compare(side_of(first.shift, y)))
    return found


def assert_right_rate(p: Sequence[float], conservative: bool = False) -> None:
    """Demand p-values that may be uniform, and as many alarms at 5 and 20 % as they promise.

    Both at 99.8 to 99.9 %. A conservative test may alarm less often.
    """
    fit: Any = kstest(p, "uniform", alternative="greater" if conservative else "two-sided")
    assert fit.pvalue > 0.001, f"p-values are not uniform: distance {fit.statistic:.3f}"
    for level in (0.05, 0.2):
        alarms = sum(value <= level for value in p)
        low, high = (int(binom.ppf(q, len(p), level)) for q in (0.001, 0.999))
        assert alarms <= high, f"{alarms} alarms of {len(p)} at {level}, at most {high} expected"
        assert conservative or alarms >= low, f"{alarms} alarms of {len(p)} at {level}, {low}"
