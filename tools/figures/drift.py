"""Print how often each shift alarms where nothing changed, on rows of a real model.

It draws the two sides of every
resample from the states of ``sonde:digits`` and compares them as ``sonde drift`` does. Three ways
of no change: other rows on each side (``other100``, ``other400``); the ``same`` rows read twice, in
float32 and bfloat16, with each pair exchanged at random; rows in ``groups`` of three near copies.
Each share stands with its exact binomial interval of 95 %. With ``--check`` a share whose interval
of 99.8 % lies above the level ends it with 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import tyro
from tools.figures._table import Table
from torch import Tensor

import sonde
from sonde.core import Stream
from sonde.core.shift import Shift
from sonde.detect import (
    MMD,
    ClassifierTwoSample,
    FourierMMD,
    Frechet,
    Hotelling,
    ReconstructionShift,
    SubspaceShift,
    UnitShift,
)
from sonde.measure import Covariance
from sonde.run.comparing.drift import drift
from sonde.run.fitting.fitted import Fitted
from sonde.stats import adjusted_p, clopper_pearson

LEVELS = (0.05, 0.01)
TIMES = 199
SHIFTS: tuple[Shift, ...] = (
    Hotelling(),
    UnitShift(),
    UnitShift(test="js"),
    UnitShift(test="mean"),
    SubspaceShift(permutations=TIMES),
    Frechet(permutations=TIMES),
    FourierMMD(m=64),
    MMD(m=512, permutations=TIMES),
    ClassifierTwoSample(),
    ReconstructionShift(permutations=TIMES),
)
WAYS = ("other100", "other400", "same", "groups")
ANY = "any of them, Holm"

Sides = tuple[Stream, Stream]


@dataclass(frozen=True)
class Line:
    """Alarms of a method in a way of no change."""

    way: str
    rows: tuple[int, int]
    method: str
    p: list[float] = field(default_factory=list[float])

    def share(self, level: float) -> tuple[float, float, float]:
        """Return the share of alarms at a level, with its interval of 95 %."""
        found = sum(p <= level for p in self.p)
        return found / len(self.p), *clopper_pearson(found, len(self.p))

    def is_right(self, level: float) -> bool:
        """Return whether the level is not surely exceeded, at 99.8 %."""
        found = sum(p <= level for p in self.p)
        return clopper_pearson(found, len(self.p), 0.998)[0] <= level


def states(dtype: str = "float32", site: int = -1) -> Tensor:
    """Return the states of every shipped digit at one site of the shipped model."""
    stream = sonde.read(sonde.load("sonde:digits", dtype=dtype), "sonde:digits")
    key = stream.schema[site].key
    return torch.cat([batch.rows[key].float() for batch in stream])


def apart(rows: Tensor, n: tuple[int, int], seed: int) -> Sides:
    """Return two sides of other rows, drawn without replacement."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    ids = [f"{i}" for i in order.tolist()]
    parts = (slice(0, n[0]), slice(n[0], sum(n)))
    first, second = (Stream.of(rows[order[p]], ids=ids[p]) for p in parts)
    return first, second


def pairs(rows: Tensor, again: Tensor, n: int, seed: int) -> Sides:
    """Return the same rows twice, each pair in random order."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows), generator=generator)[:n]
    coin = torch.rand(n, 1, generator=generator) < 0.5
    ids = [f"{i}" for i in chosen.tolist()]
    one, other = rows[chosen], again[chosen]
    return (
        Stream.of(torch.where(coin, one, other), ids=ids),
        Stream.of(torch.where(coin, other, one), ids=ids),
    )


def groups(rows: Tensor, n: int, seed: int) -> Sides:
    """Return two sides of ``n`` groups of three near copies."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)[: 2 * n].repeat_interleave(3)
    copies = rows[order] + 0.05 * rows.std() * torch.randn(
        6 * n, rows.shape[1], generator=generator
    )
    ids = [f"{i} {k % 3}" for k, i in enumerate(order.tolist())]
    names = [f"{i}" for i in order.tolist()]
    parts = (slice(0, 3 * n), slice(3 * n, 6 * n))
    first, second = (Stream.of(copies[p], ids=ids[p], group=names[p]) for p in parts)
    return first, second


def measure(
    way: str, n: tuple[int, int], draw: Callable[[int], Sides], resamples: int
) -> list[Line]:
    """Return a line for each method, and one for all of them together."""
    lines: dict[str, Line] = {}
    for seed in range(resamples):
        first, second = (_fitted(stream) for stream in draw(seed))
        found = {name: c.p for (name, _), c in drift(first, second, SHIFTS) if c.p == c.p}
        least = adjusted_p(torch.tensor(list(found.values()), dtype=torch.float64)).min()
        for name, p in {**found, ANY: float(least)}.items():
            lines.setdefault(name, Line(way, n, name)).p.append(p)
    return list(lines.values())


def _fitted(stream: Stream) -> Fitted:
    return sonde.fit(Covariance(), stream, progress=False)


def alarms(resamples: int, ways: Sequence[str]) -> list[Line]:
    """Return the lines of some ways of no change."""
    rows = states()
    lines = []
    for n in ((100, 100), (400, 200)):
        if f"other{n[0]}" in ways:
            lines += measure(
                "other rows", n, lambda seed, n=n: apart(rows, n, seed + sum(n)), resamples
            )
    if "same" in ways:
        again = states("bfloat16")
        lines += measure("same rows", (200, 200), lambda s: pairs(rows, again, 200, s), resamples)
    if "groups" in ways:
        lines += measure("groups of 3", (100, 100), lambda s: groups(rows, 100, s), resamples)
    return lines


def text(lines: list[Line]) -> str:
    """Return the table as text."""
    out = [
        f"{len(lines[0].p)} resamples without change, states of sonde:digits",
        f"{'no change':<12} {'rows':>9}  {'method':<24} {'p <= 0.05':>20} {'p <= 0.01':>20}",
    ]
    for line in lines:
        shares = "".join(
            f"{share:>7.1%} ({low:.1%}-{high:.1%})".rjust(21)
            for share, low, high in (line.share(level) for level in LEVELS)
        )
        size = f"{line.rows[0]}, {line.rows[1]}"
        out.append(f"{line.way:<12} {size:>9}  {line.method:<24}{shares}")
    return "\n".join(out)


def table(
    words: tyro.conf.Positional[
        tuple[Literal["other100", "other400", "same", "groups"], ...]
    ] = WAYS,
    *,
    resamples: int = 200,
    check: bool = False,
) -> Table:
    """Print the table; end with 1 if a level is surely exceeded and that was asked for.

    Parameters
    ----------
    words
        Ways of no change.
    resamples
        Pairs of sides of each way.
    check
        End with 1 if a fraction of alarms is surely above its level.
    """
    lines = alarms(resamples, words)
    yield text(lines)
    wrong = [line for line in lines if not all(line.is_right(level) for level in LEVELS)]
    for line in wrong:
        yield f"too many alarms: {line.method}, {line.way}, {line.rows}"
    if wrong and check:
        raise SystemExit(1)
