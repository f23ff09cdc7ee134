"""Print false-alarm rates of calibrated detectors.

Usual rows calibrate and usual rows are scored; the rates at 0.1 and 0.2 are means over draws.
``max, longer``: examples of 10 rows calibrate, examples of 60 rows are scored. ``few groups``: of
how many fits on 5 groups no group was held out. ``merged``: the largest difference of the scores
of one pass and of merged halves, in spreads of the scores.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tools.figures._measured import normal
from tools.figures._table import Row, Table, head

import sonde
from sonde.core.errors import SondeError
from sonde.core.stream import Stream
from sonde.detect import KNN, DictLookup, Mahalanobis, PatchCore
from sonde.run.fitting.fitted import Fitted

LEVELS = 0.1, 0.2
QUIET: dict[str, Any] = {"progress": False}


def examples(n: int, length: int, seed: int, dim: int = 6) -> Stream:
    """Return examples of ``length`` rows; the rows of an example share an effect."""
    random = torch.Generator().manual_seed(seed)
    x = normal(random, n, 1, dim) * 0.3 + normal(random, n, length, dim)
    names = [f"{seed}-{i}" for i in range(n) for _ in range(length)]
    place = list(range(length)) * n
    return Stream.of(x.reshape(-1, dim), ids=names, group=names, position=place)


def later(fitted: Fitted, n: int, length: int, seed: int, reduction: str) -> Fitted:
    """Return the bundle calibrated on other examples."""
    return sonde.calibrate(fitted, examples(n, length, seed), reduction=reduction, **QUIET)


def alarms(fitted: Fitted, stream: Stream) -> list[float]:
    """Return the false-alarm rate at each level."""
    p = torch.tensor(sonde.score(fitted, stream, **QUIET)["p"].to_pylist())
    return [float((p <= level).double().mean()) for level in LEVELS]


def lengths(seed: int, reduction: str, scored: int, in_fit: bool) -> list[float]:
    """Return rates if examples of 10 rows calibrate and examples of ``scored`` rows are scored."""
    one = examples(400, 10, 3 * seed)
    fitted = sonde.fit(Mahalanobis(), one, reduction=reduction, calibrate=0.5, **QUIET)
    if not in_fit:
        fitted = later(fitted, 200, 10, 3 * seed + 1, reduction)
    return alarms(fitted, examples(200, scored, 3 * seed + 2))


def plain(seed: int, groups: int | None) -> list[float]:
    """Return rates of rows, or of rows in groups."""
    random = torch.Generator().manual_seed(seed)
    x, new = normal(random, 600, 5), normal(random, 600, 5)
    columns: dict[str, Any] = {} if groups is None else {"group": [i % groups for i in range(600)]}
    fitted = sonde.fit(Mahalanobis(), Stream.of(x, **columns), calibrate=0.4, **QUIET)
    return alarms(fitted, Stream.of(new))


def few_groups(seed: int) -> float:
    """Return 1 if a fit on five groups held out none."""
    random = torch.Generator().manual_seed(seed)
    stream = Stream.of(normal(random, 100, 4), group=[f"{seed}-{i % 5}" for i in range(100)])
    try:
        sonde.fit(Mahalanobis(), stream, **QUIET).result("mahalanobis")
    except SondeError:
        return 1.0
    return 0.0


def merged(seed: int, detector: Any) -> float:
    """Return how far scores of merged halves lie from those of one pass, in spreads."""
    random = torch.Generator().manual_seed(seed)
    x, new = normal(random, 600, 8), normal(random, 200, 8)
    columns = {"ids": list(range(600)), "label": torch.arange(600) % 3}
    parts = [{k: v[at] for k, v in columns.items()} for at in (slice(0, 250), slice(250, 600))]
    whole = sonde.fit(detector, Stream.of(x, **columns), calibrate=0, **QUIET)
    halves = [
        sonde.fit(detector, Stream.of(rows, **part), calibrate=0, **QUIET)
        for rows, part in zip((x[:250], x[250:]), parts, strict=True)
    ]
    both = sonde.merge(*halves)
    one, two = (
        torch.tensor(sonde.score(f, Stream.of(new), **QUIET)["score"].to_pylist())
        for f in (whole, both)
    )
    return float((one - two).abs().max() / one.std())


RATES: dict[str, Callable[[int], list[float]]] = {
    "rows": lambda seed: plain(seed, None),
    "groups": lambda seed: plain(seed, 100),
    **{
        f"{reduction}, {name}, {'fit' if in_fit else 'calibrate'}": (
            lambda seed, r=reduction, n=scored, f=in_fit: lengths(seed, r, n, f)
        )
        for reduction in ("max", "mean", "topk_mean(3)")
        for name, scored in (("as long", 10), ("longer", 60))
        for in_fit in (True, False)
    },
}


def table(draws: int = 10) -> Table:
    """Print the tables.

    Parameters
    ----------
    draws
        Draws that each rate is the mean of.
    """
    yield head("calibrated, scored", "rate at .1", "rate at .2")
    for name, rates in RATES.items():
        yield Row((name,), partial(_means, rates, draws))
    lost = sum(few_groups(seed) for seed in range(60))
    yield f"\nfits on five groups without a held-out group: {lost:.0f} of 60\n"
    yield head("detector", "merged against one pass, in spreads of the score")
    for detector in (Mahalanobis(), KNN(), PatchCore(m=64), DictLookup(m=64, bank="coreset")):
        yield f"| {detector!r} | {max(merged(seed, detector) for seed in range(3)):.2g} |"


def _means(rates: Callable[[int], list[float]], draws: int) -> list[str]:
    columns = zip(*(rates(seed) for seed in range(draws)), strict=True)
    return [f"{statistics.mean(column):.3f}" for column in columns]
