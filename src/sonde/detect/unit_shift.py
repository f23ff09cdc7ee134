"""Which units moved: one test for each unit, corrected for their number."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Float, Int
from scipy.special import kolmogorov
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
from sonde.detect._unit_histograms import chi_squares, in_one_bin, wasserstein
from sonde.detect._unit_p_values import (
    paired_means,
    paired_shares,
    shuffled_means,
    shuffled_tail,
)
from sonde.stats import (
    LogHistogram,
    LogHistogramState,
    Scalars,
    ScalarsState,
    adjusted_p,
)
from sonde.stats.adjusted_p import Correction


@final
@dataclass(frozen=True, kw_only=True)
class UnitComparison(Comparison):
    """The largest effect over units, and effect and adjusted p-value of each.

    ``moved_by`` is the Wasserstein distance of a unit's two histograms in pooled standard
    deviations: how far its mass moved; NaN if this deviation is smaller than a bin (flag
    ``coarse``). For ``test="mean"`` it is the effect.
    """

    effect: Float[Tensor, "dim"]
    unit_p: Float[Tensor, "dim"]
    adjusted: Float[Tensor, "dim"]
    moved_by: Float[Tensor, "dim"]

    def moved(self, level: float = 0.05) -> Int[Tensor, "moved"]:
        """Return the units that moved at this level, the largest effect first."""
        chosen = torch.nonzero(self.adjusted <= level).flatten()
        known = self.effect[chosen].nan_to_num(nan=0.0, posinf=math.inf)
        return chosen[known.argsort(descending=True, stable=True)]

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return one row for each unit."""
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

    Range        [0, 1] for "ks" and "js", [0, inf) for "mean"; ``null`` is None.
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
        """Read the histogram of each unit, or its mean and spread with the sample."""
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
        """Return plain and adjusted p-values; ``p`` holds the p-values from the states alone."""
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
    """Return each unit's Kolmogorov-Smirnov distance, the scaled distance, and its tail."""
    a, b = _histograms(first, second)
    shares = [state.counts.cumsum(1).double() / state.n for state in (a, b)]
    distance = (shares[0] - shares[1]).abs().amax(1).cpu()
    distance[in_one_bin(a, b)] = math.nan
    scaled = distance * math.sqrt(n[0] * n[1] / sum(n))
    return distance, scaled, torch.from_numpy(kolmogorov(scaled.numpy()))


def _by_divergence(first: Side, second: Side, n: tuple[int, int]) -> Found:
    """Return the divergence of each unit's histograms, the test's statistic and its tail."""
    a, b = _histograms(first, second)
    found = chi_squares(a, b, n)
    for part in found:
        part[in_one_bin(a, b)] = math.nan
    return found


def _histograms(first: Side, second: Side) -> tuple[LogHistogramState, LogHistogramState]:
    a, b = (side_state(side, "units", LogHistogramState) for side in (first, second))
    check_widths("UnitShift", len(a.counts), len(b.counts))
    return a, b


def _by_means(first: Side, second: Side, n: tuple[int, int]) -> Found:
    """Return each unit's difference of means in standard deviations and in errors, and a bound."""
    a, b = (side_state(side, "units", ScalarsState) for side in (first, second))
    check_widths("UnitShift", len(a.mean), len(b.mean))
    within = ((a.scatter + b.scatter) / (a.n + b.n - 2)).cpu().sqrt()
    effect = _ratio((b.mean - a.mean).abs().cpu(), within)
    return effect, *shuffled_tail(a, b, n)


_TESTS = {"ks": _by_shares, "js": _by_divergence, "mean": _by_means}


def _ratio(a: Float[Tensor, "dim"], b: Float[Tensor, "dim"]) -> Float[Tensor, "dim"]:
    """Return the quotient; 0 / 0 is 0, and anything else over 0 infinite."""
    return torch.where(a == 0, torch.zeros_like(a), a / b)


def _largest(values: Float[Tensor, "dim"]) -> float:
    """Return the largest number that is not NaN, or NaN if all are."""
    known = values[~torch.isnan(values)]
    return float(known.max()) if len(known) else math.nan
