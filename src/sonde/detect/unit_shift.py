"""Test each unit for a change, corrected for the number of units."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import bdtrc, chdtrc, kolmogorov, stdtr
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.statistic import Statistic
from sonde.detect._sides import (
    TwoSamples,
    are_paired,
    check_widths,
    is_sampled,
    paired_rows,
    side_state,
    two_sample_reads,
    two_samples,
)
from sonde.detect._tails import bennett_exponent, beyond_floor, subset_tail
from sonde.stats import (
    LogHistogram,
    LogHistogramState,
    Scalars,
    ScalarsState,
    adjusted_p,
    log_centres,
)
from sonde.stats.adjusted_p import Correction
from sonde.stats.log_histogram import SUB

TIMES = 999
BORDERS = 15
UNITS_AT_ONCE = 64


LEAST, MOST = 10, 24
LOG_2 = math.log(2)
BIN_WIDTH = 2 ** (1 / (2 * SUB)) - 2 ** (-1 / (2 * SUB))


@final
@dataclass(frozen=True, kw_only=True)
class UnitComparison(Comparison):
    """The largest effect over units, with each unit's effect and adjusted p-value.

    ``moved_by`` is the Wasserstein distance of a unit's two histograms in pooled standard
    deviations: how far its mass moved; NaN if this deviation is smaller than a bin (flag
    ``coarse``). For ``test="mean"`` it is the effect.
    """

    effect: Float[Tensor, "dim"]
    unit_p: Float[Tensor, "dim"]
    adjusted: Float[Tensor, "dim"]
    moved_by: Float[Tensor, "dim"]

    def moved(self, level: float = 0.05) -> Int[Tensor, "moved"]:
        """Return the units significant at this level, by descending effect."""
        chosen = torch.nonzero(self.adjusted <= level).flatten()
        effect = self.effect[chosen].nan_to_num(nan=0.0, posinf=math.inf)
        return chosen[effect.argsort(descending=True, stable=True)]

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return a row for each unit."""
        return pa.table(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            {
                "unit": range(len(self.effect)),
                "value": self.effect.numpy(),
                "moved_by": self.moved_by.numpy(),
                "p": self.unit_p.numpy(),
                "adjusted": self.adjusted.numpy(),
            }
        )


@final
@dataclass(frozen=True)
class UnitShift(Shift):
    """Largest distance between a unit's two distributions, with a corrected test for each unit.

    "ks": Kolmogorov-Smirnov distance between histograms, the largest difference of the shares below
    a border of bins; it may be smaller than the distance of the rows, by at most the fullest bin's
    share. "js": Jensen-Shannon divergence of the histograms in bits, each unit's bins joined to
    cells in which the smaller side expects ten rows or more, tested by the smaller of Pearson's
    statistic and the likelihood ratio; 0 where one cell is left. "mean": difference of the means in
    pooled standard deviations, tested by 999 shuffles of the sample and, if no shuffle reaches the
    difference, by a bound over all rows.

    ``p`` is the smallest adjusted p-value: whether any unit moved; ``moved(level)`` names the
    units. If both sides are the same rows and hold a sample of them, p-values come from the pairs:
    for histograms 999 exchanges and, if no exchange reaches the observed value, an exact test of
    shares; for means Student's t.

    Range        [0, 1] for "ks" and "js", [0, inf) for "mean"; 0 = no unit changed, higher =
                 the most changed unit changed more; ``null`` is None.
    Cost         one pass; state 4 kB (histogram) or 40 B and the sample ("mean") for each unit;
                 result O(dim), for "mean" O(dim sample).
    Assumes      groups of about one size; nothing for the p-values of "ks" and "mean" ("ks" is
                 conservative if rows or bins are few); "js": tens of rows.
    Differs      from a test on rows: bins are a quarter of an octave wide, so a unit that moves far
                 less than its mean goes unseen by "ks" and "js"; where all its rows fill one bin,
                 its effect and p-value are NaN (flag ``coarse``). Values below 1e-12 or
                 above 3e7 are told apart by sign alone (flag ``clipped``).

    Parameters
    ----------
    test : {"ks", "js", "mean"}, default="ks"
        What is compared.
    correction : {"holm", "bh"}, default="holm"
        "holm" bounds the chance of a single false alarm, "bh" the share of false ones.

    Examples
    --------
    >>> rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    >>> found = UnitShift().between(rows[:200], rows[200:] * torch.tensor([1.0, 1.0, 4.0]))
    >>> found.moved().tolist()
    [2]

    References
    ----------
    massey1951ks, lin1991js, bennett1962probability, hoeffding1963probability,
    westfall1993resampling, holm1979simple, benjamini1995fdr
    """

    test: Literal["ks", "js", "mean"] = "ks"
    correction: Correction = "holm"
    paper: ClassVar[str] = "massey1951ks"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"test": "mean"},
        {"test": "js"},
        {"correction": "bh"},
    )

    def __post_init__(self) -> None:
        check_ranges(self, test=("ks", "js", "mean"), correction=("holm", "bh"))

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests: each unit's histogram, or its moments and sampled rows."""
        if self.test == "mean":
            return {"units": Scalars(), **two_sample_reads()}
        return {"units": LogHistogram()}

    def compare(self, first: Side, second: Side) -> UnitComparison:
        """Return effect and p-value of each unit."""
        n = (first.independent, second.independent)
        effect, statistic, p = _TESTS[self.test](first, second, n)
        moved_by = effect if self.test == "mean" else wasserstein(*_histograms(first, second))
        pairs = paired_rows("UnitShift", first, second)
        blind = pairs is None and are_paired(first, second) and bool((effect != 0).any())
        if blind:
            p = adjusted = torch.full_like(p, math.nan)
        else:
            p, adjusted = self._p_values(first, second, pairs, p)
        flags = ["dead"] * bool(torch.isinf(effect).any()) + ["paired"] * blind
        flags += ["coarse"] * bool(torch.isnan(moved_by).any())
        if self.test != "mean":
            flags += ["clipped"] * any(bool(h.clipped.any()) for h in _histograms(first, second))
        return UnitComparison(
            value=_largest(effect),
            n=first.n + second.n,
            range=(0.0, math.inf if self.test == "mean" else 1.0),
            flags=tuple(flags),
            conventions={
                "test": self.test,
                "correction": self.correction,
                "p": "smallest adjusted" + (", pairs" if pairs is not None else ""),
            },
            p=-_largest(-adjusted),
            statistic=_largest(statistic),
            sides=n,
            effect=effect,
            unit_p=p,
            adjusted=adjusted,
            moved_by=moved_by,
        )

    def _p_values(
        self, first: Side, second: Side, pairs: TwoSamples | None, p: Float[Tensor, "dim"]
    ) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
        """Return plain and adjusted p-values; ``p`` holds those from the states alone."""
        joint = None
        if pairs is not None and self.test == "mean":
            p = paired_means(pairs)
        elif pairs is not None:
            p, joint = paired_shares(pairs)
        elif self.test == "mean":
            rows = two_samples("UnitShift", first, second)
            p, joint = shuffled_means(rows, p, is_sampled(first, second))
        if joint is not None and self.correction == "holm":
            return p, joint
        return p, adjusted_p(p, self.correction)


Found = tuple[Float[Tensor, "dim"], Float[Tensor, "dim"], Float[Tensor, "dim"]]


def _by_shares(first: Side, second: Side, n: tuple[int, int]) -> Found:
    """Return each unit's Kolmogorov-Smirnov distance, its scaled form, and its tail."""
    a, b = _histograms(first, second)
    shares = [state.counts.cumsum(1).double() / state.n for state in (a, b)]
    distance = (shares[0] - shares[1]).abs().amax(1).cpu()
    distance[in_one_bin(a, b)] = math.nan
    scaled = distance * math.sqrt(n[0] * n[1] / sum(n))
    return distance, scaled, torch.from_numpy(kolmogorov(scaled.numpy()))


def _by_divergence(first: Side, second: Side, n: tuple[int, int]) -> Found:
    """Return each unit's histogram divergence, test statistic and tail probability."""
    a, b = _histograms(first, second)
    tests = chi_squares(a, b, n)
    for part in tests:
        part[in_one_bin(a, b)] = math.nan
    return tests


def _histograms(first: Side, second: Side) -> tuple[LogHistogramState, LogHistogramState]:
    a, b = (side_state(side, "units", LogHistogramState) for side in (first, second))
    check_widths("UnitShift", len(a.counts), len(b.counts))
    return a, b


def _by_means(first: Side, second: Side, n: tuple[int, int]) -> Found:
    """Return each unit's mean difference in standard deviations and errors, and a bound."""
    a, b = (side_state(side, "units", ScalarsState) for side in (first, second))
    check_widths("UnitShift", len(a.mean), len(b.mean))
    within = ((a.scatter + b.scatter) / (a.n + b.n - 2)).cpu().sqrt()
    effect = _ratio((b.mean - a.mean).abs().cpu(), within)
    return effect, *shuffled_tail(a, b, n)


_TESTS = {"ks": _by_shares, "js": _by_divergence, "mean": _by_means}


def _ratio(a: Float[Tensor, "dim"], b: Float[Tensor, "dim"]) -> Float[Tensor, "dim"]:
    """Return the quotient; 0 / 0 is 0, and other divisions by 0 are infinite."""
    return torch.where(a == 0, torch.zeros_like(a), a / b)


def _largest(values: Float[Tensor, "dim"]) -> float:
    """Return the largest non-NaN number, or NaN if all are NaN."""
    defined = values[~torch.isnan(values)]
    return float(defined.max()) if len(defined) else math.nan


def chi_squares(
    a: LogHistogramState, b: LogHistogramState, n: tuple[int, int]
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return each unit's divergence in bits, homogeneity statistic and p-value.

    Bins are joined, from the lowest on, into at most ``MOST`` cells of about equal shares. In each
    cell the smaller side expects at least ``LEAST`` rows. If only one cell is left, p is 1.
    """
    counts = [state.counts.double().cpu() for state in (a, b)]
    shares = [c / c.sum(1, keepdim=True) for c in counts]
    cell = _cells((n[0] * shares[0] + n[1] * shares[1]) / sum(n), min(n))
    joined = [torch.zeros(len(s), MOST + 1, dtype=s.dtype).scatter_add_(1, cell, s) for s in shares]
    middle = (joined[0] + joined[1]) / 2
    bits = (_relative(joined[0], middle) + _relative(joined[1], middle)) / 2
    pooled = (n[0] * joined[0] + n[1] * joined[1]) / sum(n)
    gap = (joined[0] - joined[1]).square()
    weight = n[0] * n[1] / sum(n)
    chi = weight * torch.where(pooled > 0, gap / pooled, torch.zeros_like(gap)).sum(1)
    bits_of = [m * _relative(s, pooled) for m, s in zip(n, joined, strict=True)]
    likelihood = 2 * LOG_2 * (bits_of[0] + bits_of[1])
    statistic = torch.minimum(chi, likelihood)
    freedom = (pooled > 0).sum(1) - 1
    p = torch.from_numpy(chdtrc(freedom.clamp(min=1).numpy(), statistic.numpy()))
    return bits, statistic, torch.where(freedom > 0, p, torch.ones_like(p))


def _cells(pooled: Float[Tensor, "dim bin"], n: int) -> Int[Tensor, "dim bin"]:
    """Return each bin's cell; a cell closes at a minimal fraction, the last takes the rest."""
    full = max(LEAST / n, 1 / MOST) - 1e-12
    cell = torch.zeros(pooled.shape, dtype=torch.int64)
    held, at = torch.zeros(len(pooled), dtype=pooled.dtype), cell[:, 0].clone()
    for i in torch.nonzero((pooled > 0).any(0)).flatten().tolist():
        cell[:, i] = at
        held += pooled[:, i]
        at += held >= full
        held = torch.where(held >= full, torch.zeros_like(held), held)
    return torch.minimum(cell.cummax(1).values, (at - 1).clamp(min=0)[:, None])


def _relative(p: Float[Tensor, "dim cell"], q: Float[Tensor, "dim cell"]) -> Float[Tensor, "dim"]:
    """Return the relative entropy in bits; empty cells contribute 0."""
    ratio = torch.where(p > 0, p / q, torch.ones_like(p))
    return (p * ratio.log2()).sum(1)


def wasserstein(a: LogHistogramState, b: LogHistogramState) -> Float[Tensor, "dim"]:
    """Return each unit's Wasserstein distance, in pooled standard deviations of bin centres.

    NaN if this standard deviation is below the width of the unit's fullest bin.
    """
    centres = log_centres()
    shares = [s.counts.double().cpu() / s.n for s in (a, b)]
    gap = (shares[0] - shares[1]).cumsum(1)[:, :-1].abs()
    moved = gap @ centres.diff()
    weight = a.n / (a.n + b.n)
    pooled = weight * shares[0] + (1 - weight) * shares[1]
    mean = pooled @ centres
    spread = (pooled @ centres.square() - mean.square()).clamp(min=0).sqrt()
    width = BIN_WIDTH * centres[pooled.argmax(1)].abs()
    moved = torch.where(spread > 0, moved / spread, torch.zeros_like(moved))
    return torch.where(spread < width, torch.full_like(moved, math.nan), moved)


def in_one_bin(a: LogHistogramState, b: LogHistogramState) -> Bool[Tensor, "dim"]:
    """Return the units with all rows of both sides in one bin, except the zero bin."""
    fullest = (a.counts + b.counts).max(1)
    is_zero = log_centres()[fullest.indices.cpu()] == 0
    return (fullest.values.cpu() == a.n + b.n) & ~is_zero


def shuffled_means(
    rows: TwoSamples, bound: Float[Tensor, "dim"], sampled: bool
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return p-values of each unit's mean under shuffling, plain and adjusted.

    The sample's rows are shuffled over both sides. The adjusted p-value compares with the most
    surprising unit of each shuffle, by Bennett's exponent: a common measure for units of any
    sparsity. If no shuffle reaches the observed value, ``bound``, from the means of all rows, may
    lower the p-value. If the sample is not all rows, the p-value is twice the smaller of both.
    """
    exponents = []
    for p, other in zip(_shuffled(rows), (bound, bound * len(bound)), strict=True):
        both = 2 * torch.minimum(p, other) if sampled else beyond_floor(p, TIMES, other)
        exponents.append(both.clamp(max=1.0))
    return exponents[0], exponents[1]


def _shuffled(rows: TwoSamples) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return permutation p-values, plain and adjusted for the number of units."""
    pooled = torch.cat([rows.x, rows.y])
    pooled -= pooled.mean(0)
    own = torch.arange(len(pooled)) < len(rows.x)
    chosen = torch.cat([own[None], rows.shuffles(TIMES)]).double()
    share = len(rows.x) / len(pooled)
    variance = share * (1 - share) * pooled.square().sum(0)
    reach = max(share, 1 - share) * pooled.abs().amax(0)
    exponents = bennett_exponent((chosen @ pooled).abs(), variance, reach)
    observed, shuffled = exponents[0], exponents[1:] * (1 + 1e-9)
    highest = shuffled.amax(1, keepdim=True)
    plain, joint = ((shuffled >= observed).sum(0), (highest >= observed).sum(0))
    return (1 + plain).double() / (1 + TIMES), (1 + joint).double() / (1 + TIMES)


def shuffled_tail(
    a: ScalarsState, b: ScalarsState, n: tuple[int, int]
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return each unit's mean difference in shuffled standard errors, with a tail bound.

    Both use all rows; ``n`` rows of each side are independent. Differences within rounding are 0.
    """
    shares = [m / sum(n) for m in n]
    gap, mean = (b.mean - a.mean).abs(), shares[0] * a.mean + shares[1] * b.mean
    gap = torch.where(gap > 1e-12 * torch.maximum(a.mean.abs(), b.mean.abs()), gap, 0.0)
    between = shares[0] * shares[1] * gap.square()
    spread = (shares[0] * a.variance + shares[1] * b.variance + between).sqrt()
    reach = torch.maximum(torch.maximum(a.high, b.high) - mean, mean - torch.minimum(a.low, b.low))
    errors = torch.where(gap > 0, gap / spread * (shares[0] * n[1]) ** 0.5, torch.zeros_like(gap))
    return errors.cpu(), subset_tail(gap.cpu(), spread.cpu(), reach.cpu(), n)


def paired_means(pairs: TwoSamples) -> Float[Tensor, "dim"]:
    """Return Student's two-sided p-value of each unit's differences."""
    gap = pairs.y - pairs.x
    n, mean = len(gap), gap.mean(0)
    error = ((gap - mean).square().sum(0) / (n * (n - 1))).sqrt()
    t = torch.where(mean == 0, torch.zeros_like(mean), mean.abs() / error)
    return torch.from_numpy(2 * stdtr(n - 1, -t.numpy()))


def paired_shares(pairs: TwoSamples) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return p-values of each unit's distribution, plain and adjusted for the number of units.

    A unit's statistic is the largest standardised difference of the shares of both sides below 15
    quantiles of the pooled rows; its null changes the sides of pairs at random. The adjusted
    p-value compares with the largest statistic of all units under the same exchanges. If no
    exchange reaches the observed value, McNemar's exact test at the clearest of the 15 may lower
    the p-value: times 15 and, if adjusted, times the number of units.
    """
    signs = torch.cat([torch.ones(1, len(pairs.x)), pairs.signs(TIMES).float()])
    chunks = [
        _statistics(pairs.x[:, part], pairs.y[:, part], signs)
        for part in torch.arange(pairs.x.shape[1]).split(UNITS_AT_ONCE)
    ]
    statistic = torch.cat([sums for sums, _ in chunks], dim=1)
    exact = torch.cat([p for _, p in chunks])
    observed, shuffled = statistic[0], statistic[1:] + 1e-5
    highest = shuffled.amax(1)
    plain = (1 + (shuffled >= observed).sum(0)).double() / (1 + TIMES)
    joint = (1 + (highest[:, None] >= observed).sum(0)).double() / (1 + TIMES)
    return beyond_floor(plain, TIMES, exact), beyond_floor(joint, TIMES, exact * len(exact))


def _statistics(
    x: Float[Tensor, "row unit"], y: Float[Tensor, "row unit"], signs: Float[Tensor, "time row"]
) -> tuple[Float[Tensor, "time unit"], Float[Tensor, "unit"]]:
    """Return each unit's statistic under each choice of signs, and its exact p-value."""
    at = torch.linspace(0, 1, BORDERS + 2, dtype=x.dtype)[1:-1]
    borders = torch.quantile(torch.cat([x, y]), at, dim=0)
    below = [(rows[:, None] <= borders).float() for rows in (x, y)]
    gap = (below[1] - below[0]).flatten(1)
    scale = gap.square().sum(0).sqrt()
    sums = (signs @ gap).abs() / scale.clamp(min=1.0)
    changed = gap.square().sum(0).double()
    common = (changed + gap.sum(0).abs()) / 2
    exact = torch.from_numpy(2 * BORDERS * bdtrc((common - 1).numpy(), changed.long().numpy(), 0.5))
    return sums.reshape(len(signs), BORDERS, -1).amax(1), exact.reshape(BORDERS, -1).amin(0)
