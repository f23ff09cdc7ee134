"""Which units moved: one test for each unit, corrected for their number."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Float, Int
from scipy.special import kolmogorov, stdtr
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.statistic import Statistic
from sonde.detect._paired_units import paired_means, paired_shares
from sonde.detect._sides import Rows, are_paired, check_widths, paired_rows, state_of
from sonde.detect._unit_histograms import chi_squares, wasserstein
from sonde.stats import LogHistogram, LogHistogramState, Scalars, ScalarsState, adjusted_p
from sonde.stats.adjusted_p import Correction


@final
@dataclass(frozen=True, kw_only=True)
class UnitComparison(Comparison):
    """The largest effect over units, and effect and adjusted p-value of each.

    ``moved_by`` is the Wasserstein distance of a unit's two histograms in pooled standard
    deviations: how far its mass moved. For ``test="mean"`` it is the effect.
    """

    effect: Float[Tensor, "dim"]
    unit_p: Float[Tensor, "dim"]
    adjusted: Float[Tensor, "dim"]
    moved_by: Float[Tensor, "dim"]

    def moved(self, level: float = 0.05) -> Int[Tensor, "moved"]:
        """Return the units that moved at this level, the largest effect first."""
        chosen = torch.nonzero(self.adjusted <= level).flatten()
        return chosen[self.effect[chosen].argsort(descending=True, stable=True)]

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

    "ks": Kolmogorov-Smirnov distance between histograms, the largest difference of the shares
    below a border of bins; it may fall short of that of the rows by the fullest bin's share.
    "js": Jensen-Shannon divergence of the histograms in bits, each unit's bins joined to about
    equal shares of at least ten rows, tested by chi-square. "mean": difference of the means in
    pooled standard deviations, tested by Welch. ``p`` is the smallest adjusted one: whether any
    unit moved; ``moved(level)`` names them. Where both sides are the same rows and hold a sample of
    them, p-values come from the pairs: for histograms 999 exchanges and, where none of these
    reaches, an exact test of shares; for means Student's t.

    Range        [0, 1] for "ks" and "js", [0, inf) for "mean"; ``null`` is None.
    Cost         one pass; state 4 kB (histogram) or 40 B ("mean") for each unit; result O(dim).
    Assumes      groups of about one size; "mean": rows that are many or nearly normal, while "ks"
                 promises its p-value for every distribution, and is careful for few rows and bins;
                 "js": tens of rows.
    Differs      from a test on rows: bins are a quarter of an octave wide, so a unit that moves far
                 less than its mean goes unseen by "ks".

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
    massey1951ks, lin1991js, welch1947generalization, westfall1993resampling, holm1979simple,
    benjamini1995fdr
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
        if self.test not in ("ks", "js", "mean") or self.correction not in ("holm", "bh"):
            raise InputError(
                "UnitShift: expected test 'ks', 'js' or 'mean' and correction 'holm' or 'bh', "
                f"got {self.test!r} and {self.correction!r}."
            )

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the histogram of each unit, or its mean and spread."""
        return {"units": Scalars() if self.test == "mean" else LogHistogram()}

    def compare(self, first: Side, second: Side) -> UnitComparison:
        """Return effect and p-value of each unit."""
        n = (first.independent, second.independent)
        effect, statistic, p = _TESTS[self.test](first, second, n)
        moved_by = effect if self.test == "mean" else wasserstein(*_histograms(first, second))
        pairs = paired_rows("UnitShift", first, second)
        blind = pairs is None and are_paired(first, second) and bool((effect > 0).any())
        if pairs is not None:
            p, adjusted = self._paired(pairs)
        else:
            p = torch.full_like(p, math.nan) if blind else p
            adjusted = adjusted_p(p, self.correction)
        dead = bool(torch.isinf(effect).any())
        flags = ["dead"] * dead + ["paired"] * blind
        return UnitComparison(
            value=float(effect.max()),
            n=first.n + second.n,
            range=(0.0, math.inf if self.test == "mean" else 1.0),
            flags=tuple(flags),
            conventions={
                "test": self.test,
                "correction": self.correction,
                "p": "smallest adjusted" + (", pairs" if pairs is not None else ""),
            },
            p=float(adjusted.min()),
            statistic=float(statistic.max()),
            sides=n,
            effect=effect,
            unit_p=p,
            adjusted=adjusted,
            moved_by=moved_by,
        )

    def _paired(self, pairs: Rows) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
        """Return p-values of pairs, plain and adjusted."""
        if self.test == "mean":
            p = paired_means(pairs)
            return p, adjusted_p(p, self.correction)
        p, joint = paired_shares(pairs)
        return p, joint if self.correction == "holm" else adjusted_p(p, self.correction)


Found = tuple[Float[Tensor, "dim"], Float[Tensor, "dim"], Float[Tensor, "dim"]]


def _by_shares(first: Side, second: Side, n: tuple[int, int]) -> Found:
    """Return the largest difference of shares, scaled, and its Kolmogorov tail, of each unit."""
    a, b = _histograms(first, second)
    shares = [state.counts.cumsum(1).double() / state.n for state in (a, b)]
    distance = (shares[0] - shares[1]).abs().amax(1).cpu()
    scaled = distance * math.sqrt(n[0] * n[1] / sum(n))
    return distance, scaled, torch.from_numpy(kolmogorov(scaled.numpy()))


def _by_divergence(first: Side, second: Side, n: tuple[int, int]) -> Found:
    """Return the divergence of the histograms, chi-square and its tail, of each unit."""
    return chi_squares(*_histograms(first, second), n)


def _histograms(first: Side, second: Side) -> tuple[LogHistogramState, LogHistogramState]:
    a, b = (state_of(side, "units", LogHistogramState) for side in (first, second))
    check_widths("UnitShift", len(a.counts), len(b.counts))
    return a, b


def _by_means(first: Side, second: Side, n: tuple[int, int]) -> Found:
    """Return the standardised difference of means, Welch's t and its two tails, of each unit."""
    a, b = (state_of(side, "units", ScalarsState) for side in (first, second))
    check_widths("UnitShift", len(a.mean), len(b.mean))
    delta = (b.mean - a.mean).abs().cpu()
    variances = [(s.scatter / (s.n - 1)).cpu() for s in (a, b)]
    spreads = [v / m for v, m in zip(variances, n, strict=True)]
    total = spreads[0] + spreads[1]
    pooled = ((a.scatter + b.scatter) / (a.n + b.n - 2)).cpu().sqrt()
    t = _ratio(delta, total.sqrt())
    own = [s.square() / (m - 1) for s, m in zip(spreads, n, strict=True)]
    freedom = _ratio(total.square(), own[0] + own[1])
    freedom = torch.where(torch.isfinite(freedom) & (freedom > 0), freedom, sum(n) - 2.0)
    return _ratio(delta, pooled), t, torch.from_numpy(2 * stdtr(freedom.numpy(), -t.numpy()))


_TESTS = {"ks": _by_shares, "js": _by_divergence, "mean": _by_means}


def _ratio(a: Float[Tensor, "dim"], b: Float[Tensor, "dim"]) -> Float[Tensor, "dim"]:
    """Return the quotient; 0 / 0 is 0, and anything else over 0 infinite."""
    return torch.where(a == 0, torch.zeros_like(a), a / b)
