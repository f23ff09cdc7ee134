"""Mutual information of two sites: of Gaussians, of ranks, or from nearest neighbours.

No estimator sees much in many dimensions: the first two see linear and monotone dependence alone,
the third falls short from a handful of units on (flag ``high_dim``). For similarity see ``cka``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from scipy.special import digamma
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Span, Statistic
from sonde.measure._canonical import canonical_correlations
from sonde.measure._codes import COMPRESSORS, Compressor, code_of
from sonde.measure._flags import moment_flags
from sonde.measure._ksg import ksg_terms, without_ties
from sonde.measure._neighbourhood import without_copies
from sonde.stats import (
    CrossMoments,
    CrossMomentsState,
    HashSample,
    HashSampleState,
    Moments,
    MomentsState,
)
from sonde.stats.halves import random_halves
from sonde.stats.sampled_rows import SHUFFLES, SampledRows

ROUNDING = 1e-12


Estimator = Literal["gaussian", "copula", "ksg"]
Scale = Literal["none", "std"]

MOST_DIMS = 6
TOO_WIDE = 10.0
NEAR_LIMIT = 0.99
GROWN, GROWN_HALVES, LEAST_GROUPS = 0.7, 4, 40


@final
@dataclass(frozen=True, kw_only=True)
class MutualInformationResult(Result):
    """Mutual information in nats.

    ``raw`` is the estimate itself and ``bias`` its mean over unrelated rows. If debiased, the value
    is their difference and the null is 0. ``kept`` is the share of each site's variance in the
    components that were used.
    """

    direction: Direction = "higher"
    unit: str = "nats"
    raw: float
    bias: float
    kept: tuple[float, ...] = (1.0, 1.0)


@final
@dataclass(frozen=True)
class MutualInformation(Instrument):
    """Mutual information between the rows of two sites, in nats.

    ``gaussian`` is ``-1/2 sum ln(1 - rho^2)`` over canonical correlations, exact for Gaussian rows
    and blind to dependence without correlation. ``copula`` is the same of normal scores of each
    unit's ranks. ``ksg`` takes the distance of each row's ``k`` th neighbour in both sites together
    and counts the rows nearer than that in each site: ``psi(k) + psi(n) - mean(psi(n_x + 1) +
    psi(n_y + 1))``. Distance is the largest difference of a unit.

    Range        [0, inf), nats; higher = more dependent. Estimates fall below 0 by chance.
                 Invariant to  shifts; gaussian: invertible linear maps; copula: increasing maps of
                 single units; ksg with ``scale="std"``: scale of single units.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes, else ``m`` rows; result
                 O(dim^3), ksg O(m^2 (dim + dim2)), 41 times over for its null and error.
    Assumes      more rows than ``dim + dim2 + 1`` (flag ``few_rows``); ksg: at most 6 units in all
                 (flag ``high_dim``). If rows come in groups, the closed-form null takes the number
                 of rows that would be independent, the null of a sample is the mean of 20 shuffles
                 of whole groups, and rows of one group are no neighbours.
    Differs      from the papers: units that are constant or copies are left out of the Gaussian
                 forms, ties are broken by seeded noise of 1e-10 deviations. At independence the
                 error of ``gaussian`` is 1.4 times too wide.

    Parameters
    ----------
    estimator : {"gaussian", "copula", "ksg"}, default="gaussian"
        What is estimated.
    debias : bool, default=True
        Subtract the null from the Gaussian forms: exact at independence. The bias of ``ksg`` is
        small and stays.
    k : int, default=4
        Neighbours of ``ksg``: fewer is less bias and more spread.
    scale : {"none", "std"}, default="none"
        Distances of ``ksg`` between units as they are, or divided by their deviations.
    components : int or None, default=None
        Number of components of each site that ``ksg`` uses, scaled to deviation 1: a lower bound in
        the limit, and a way to avoid ``high_dim``. ``kept`` is their share of the variance.
    compressor : {"pca", "autoencoder"}, default="pca"
        Whether these are principal components or the code of a small autoencoder, which follows
        curved rows.
    m : int, default=2048
        Rows of the sample of ``copula`` and ``ksg``.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 1000, 1, generator=torch.Generator().manual_seed(0))
    >>> round(mutual_information(a, 2 * a + 1 + b).value, 1), round(0.5 * math.log(5), 1)
    (0.8, 0.8)

    References
    ----------
    kraskov2004ksg, ince2017copula, butakov2024compression
    """

    estimator: Estimator = "gaussian"
    debias: bool = True
    k: int = 4
    scale: Scale = "none"
    m: int = SAMPLE
    components: int | None = None
    compressor: Compressor = "pca"
    span: ClassVar[Span] = "pair"
    least_rows: ClassVar[int] = 3
    paper: ClassVar[str] = "kraskov2004ksg"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"estimator": "copula", "m": 64},
        {"estimator": "ksg", "k": 3, "scale": "std", "m": 64},
        {"estimator": "ksg", "m": 64, "components": 1},
    )

    def __post_init__(self) -> None:
        check_ranges(
            self,
            estimator=("gaussian", "copula", "ksg"),
            scale=("none", "std"),
            k=">= 1",
            m=">= 1",
            compressor=COMPRESSORS,
        )
        if self.components is not None and (self.components < 1 or self.estimator != "ksg"):
            raise InputError(
                "MutualInformation: expected components of at least 1, and components only with "
                f"the estimator 'ksg', got {self.components} for {self.estimator!r}."
            )

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for both sites' moments, or their samples."""
        if self.estimator == "gaussian":
            return {"cross": CrossMoments(), "each": Moments()}
        return {"samples": HashSample(self.m)}

    def result(
        self,
        cross: CrossMomentsState | None = None,
        each: tuple[MomentsState, MomentsState] | None = None,
        samples: tuple[HashSampleState, HashSampleState] | None = None,
        independent: float | None = None,
    ) -> MutualInformationResult:
        """Compute the estimate from the moments, or from the sampled rows."""
        if cross is not None and each is not None:
            return self._of_moments(cross, *each, independent)
        assert samples is not None  # guaranteed by reads
        return self._of_sample(SampledRows.of(samples))

    def _of_moments(
        self, cross: CrossMomentsState, x: MomentsState, y: MomentsState, independent: float | None
    ) -> MutualInformationResult:
        flags = dict.fromkeys(moment_flags(x) + moment_flags(y))
        if cross.n <= len(x.mean) + len(y.mean) + 1:
            flags["few_rows"] = None
        if "dead" in flags:
            return self._answer(math.nan, math.nan, cross.n, [*flags], {})
        raw, null = gaussian_information(cross, x, y, independent)
        flags |= {"saturated": None} if bool(torch.isinf(raw)) else {}
        return self._answer(raw, null, cross.n, [*flags], {"null": "closed form"})

    def _of_sample(self, rows: SampledRows) -> MutualInformationResult:
        flags_of_rows = rows.flags
        if self.estimator == "ksg":
            n, rows = len(rows), without_copies(rows)
            flags_of_rows += ("copies",) if len(rows) < n else ()
        dims = sum(min(x.shape[1], self.components or x.shape[1]) for x in rows.rows)
        largest = int(torch.bincount(rows.group).max()) if len(rows) else 0
        ksg = self.estimator == "ksg"
        few = len(rows) - largest < self.k if ksg else rows.n_groups <= dims + 1
        dead = any(bool((x == x[:1]).all()) for x in rows.rows)
        raised = {"dead": dead, "few_rows": few, "high_dim": ksg and dims > MOST_DIMS}
        raised["massive_units"] = ksg and self.scale == "none" and _is_uneven(rows.rows)
        flags = [*flags_of_rows, *(flag for flag, is_so in raised.items() if is_so)]
        if dead or len(rows) - largest < (self.k if ksg else dims):
            return self._answer(math.nan, math.nan, len(rows), flags, {"se": "no value"})
        raw_rows = rows
        rows, kept = self._coded(rows)
        rows, figure = self._prepared(rows), self._by_neighbours if ksg else information_of_rows
        raw, null = figure(rows)
        full = float(raw) >= NEAR_LIMIT * self._limit(rows)
        flags += ["saturated"] if full else []
        flags += ["se_first_order"] if self.components is not None else []
        closed = math.isfinite(null) and not rows.grouped
        if not closed:
            null = sum(float(figure(other)[0]) for other in rows.shuffled()) / SHUFFLES
        # halves have another null, the same for each
        if self.components is None or self.compressor != "pca":
            se, how = rows.standard_error(lambda half: figure(half)[0])
        else:  # other rows have other principal components
            se, how = raw_rows.standard_error(
                lambda half: figure(self._prepared(self._coded(half)[0]))[0]
            )
        if ksg and not full and _grows(rows, float(raw), lambda half: float(figure(half)[0])):
            flags, full = [*flags, "deterministic"], True
        if full and ksg:
            se, how = (
                None,
                "none: the estimator is at its upper limit, or grows with the number of rows: the "
                "value is a lower bound",
            )
        if se is not None and not bool(se.isfinite()):
            se, how = None, "none: too few rows for halves"
        conventions = {
            "se": how,
            "null": "closed form" if closed else f"{SHUFFLES} shuffles of groups",
        }
        return self._answer(float(raw), null, len(rows), flags, conventions, se, kept)

    def _coded(self, rows: SampledRows) -> tuple[SampledRows, tuple[float, ...]]:
        """Return both sites' components, if requested, and their fraction of variance."""
        if self.components is None:
            return rows, (1.0, 1.0)
        codes = [code_of(x, self.components, self.compressor) for x in rows.rows]
        return replace(rows, rows=tuple(x for x, _ in codes)), tuple(k for _, k in codes)

    def _prepared(self, rows: SampledRows) -> SampledRows:
        """Return the rows to compare: normal scores, or untied rows, perhaps scaled."""
        if self.estimator == "copula":
            return replace(rows, rows=tuple(normal_scores(x) for x in rows.rows))
        ready = [without_ties(x, seed) for seed, x in enumerate(rows.rows)]
        if self.scale == "std":
            scales = [x.std(0, correction=0) for x in ready]
            ready = [x / s.where(s > 0, 1.0) for x, s in zip(ready, scales, strict=True)]
        return replace(rows, rows=tuple(ready))

    def _limit(self, rows: SampledRows) -> float:
        """Return the largest value that the formula can give for this number of rows."""
        if self.estimator != "ksg":
            return math.inf
        others = len(rows) - torch.bincount(rows.group)[rows.group] + 1
        return float(torch.special.digamma(others.double()).mean() - digamma(self.k))

    def _by_neighbours(self, rows: SampledRows) -> tuple[Tensor, float]:
        x, y = rows.rows
        return ksg_terms(x, y, rows.group, self.k).mean(), math.nan

    def _answer(
        self,
        raw: Tensor | float,
        null: float,
        n: int,
        flags: Sequence[str],
        told: dict[str, Any],
        se: Tensor | None = None,
        kept: tuple[float, ...] = (1.0, 1.0),
    ) -> MutualInformationResult:
        ksg = self.estimator == "ksg"
        how: dict[str, Any] = {"k": self.k, "scale": self.scale}
        if self.components:
            how |= {"components": self.components, "compressor": self.compressor}
        how = how if ksg else {"debiased": self.debias}
        return MutualInformationResult(
            value=raw - null if self.debias and not ksg else raw,
            se=se,
            null=0.0 if self.debias and not ksg and math.isfinite(null) else null,
            n=n,
            range=(0.0, math.inf),
            flags=tuple(flags),
            conventions={"estimator": self.estimator, **how, **told},
            raw=float(torch.as_tensor(raw).detach()),
            bias=null,
            kept=kept,
        )


def _grows(rows: SampledRows, value: float, figure: Callable[[SampledRows], float]) -> bool:
    """Return whether the value grows by most of ``ln 2`` from half of the groups to all.

    If one side is a function of the other, each doubling of the rows halves the volume that holds
    ``k`` neighbours on both sides alike, and adds ``ln 2``. Finite information that the rows can
    show does not grow.
    """
    if rows.n_groups < LEAST_GROUPS:
        return False
    halves = random_halves(rows.group, GROWN_HALVES, seed=1)
    grown = value - sum(figure(rows.take(half)) for half in halves) / GROWN_HALVES
    return grown > GROWN * math.log(2.0)


def _is_uneven(sites: Sequence[Float[Tensor, "row _dim"]]) -> bool:
    """Return whether the widest unit is ten times the median, or the other site's widest."""
    spread = [x.std(0, correction=0) for x in sites]
    widest = torch.stack([s.max() for s in spread])
    return bool(widest.max() > TOO_WIDE * torch.minimum(widest.min(), torch.cat(spread).median()))


mutual_information = as_function(MutualInformation)


def gaussian_information(
    cross: CrossMomentsState, x: MomentsState, y: MomentsState, independent: float | None = None
) -> tuple[Float[Tensor, ""], float]:
    """Return ``-1/2 sum ln(1 - rho^2)`` in nats and its mean over unrelated Gaussian rows.

    Differentiable in the moments. Infinite if a correlation is 1 to rounding. Both are NaN if there
    are no more rows than varying directions of both sites: some correlation is then always 1.
    """
    correlations = canonical_correlations(cross, x, y)
    null = gaussian_null(independent or cross.n, *correlations.ranks)
    square = correlations.rho.square()
    value = -0.5 * torch.log1p(-square).sum()
    if bool((square.detach() > 1.0 - ROUNDING).any()):
        value = torch.full_like(value.detach(), math.inf)
    return (value, null) if math.isfinite(null) else (value * math.nan, null)


def gaussian_null(n: float, dim: int, dim2: int) -> float:
    """Return the exact mean estimate from ``n`` unrelated Gaussian rows; NaN with too few rows."""
    if n <= dim + dim2:
        return math.nan
    half = 0.5 * (n - torch.arange(1, dim + dim2 + 1, dtype=torch.float64))
    terms = torch.special.digamma(half)
    return 0.5 * float(terms[:dim].sum() + terms[:dim2].sum() - terms.sum())


def information_of_rows(rows: SampledRows) -> tuple[Float[Tensor, ""], float]:
    """Return the information of two sites of Gaussian rows, and its null."""
    each = (Moments().observe(rows.rows[0]), Moments().observe(rows.rows[1]))
    return gaussian_information(CrossMoments().observe(*rows.rows), *each)


def normal_scores(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Return each unit's normal quantiles of ``rank / (n + 1)``; equal values share a rank."""
    columns = x.T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns)
    upto = torch.searchsorted(ordered, columns, right=True)
    rank = 0.5 * (below + upto + 1).T.double()
    return torch.special.ndtri(rank / (len(x) + 1))
