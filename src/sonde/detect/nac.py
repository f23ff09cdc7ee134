"""Neuron activation coverage: how rare an input's unit states are among the fitted rows.

A unit's state is its output times its influence on the decision, so it needs gradients: a stream
with ``objective="kl_uniform"``. Fit and score cost a forward and a backward pass.
"""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, SondeWarning, StateError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width
from sonde.stats.influence_bins import (
    influence_cells,
    influence_counts,
    influence_edges,
    row_blocks,
)
from sonde.stats.log_histogram import LogHistogram, LogHistogramState

LEAST_INFLUENCE = 2.0**-39.5
"""Sizes up to here share the first bin of the histogram, or the one beside it."""
CLIPPED_BELOW = 2.0**-33
"""At a typical size up to here the finest bins of the grid lie below the histogram."""


@dataclass(frozen=True)
class InfluenceCountsState(State):
    """Number of rows in each bin of the grid, by unit."""

    n: int
    counts: Int[Tensor, "dim bin"]


@final
@dataclass(frozen=True)
class InfluenceCounts(Statistic[InfluenceCountsState]):
    """Histogram of output times gradient on the paper's grid, independent of data splits.

    Parameters
    ----------
    alpha : float
        Steepness of the sigmoid.
    n_bins : int
        Number of thresholds.
    """

    alpha: float
    n_bins: int

    def observe(
        self, x: Float[Tensor, "row dim"], grad: Float[Tensor, "row dim"]
    ) -> InfluenceCountsState:
        """Return the counts of a batch."""
        edges = influence_edges(self.alpha, self.n_bins)
        return InfluenceCountsState(len(x), influence_counts(x, grad, edges))

    def merge(self, a: InfluenceCountsState, b: InfluenceCountsState) -> InfluenceCountsState:
        """Return the counts of both states."""
        return InfluenceCountsState(a.n + b.n, a.counts + b.counts)


@final
@dataclass(frozen=True, kw_only=True)
class NACScorer(Scorer):
    """One minus the mean coverage of the units' states; ``value`` is the mean over bins."""

    edges: Float[Tensor, "edge"]
    coverage: Float[Tensor, "dim bin"]
    alpha: float

    def score(
        self, x: Float[Tensor, "row dim"], grad: Float[Tensor, "row dim"]
    ) -> Float[Tensor, "row"]:
        """Return one minus the mean coverage over units of each row's bin."""
        check_fitted_width("NAC", x, len(self.coverage))
        table = self.coverage.to(x.device).flatten()
        uncovered = torch.empty(len(x), dtype=table.dtype, device=x.device)
        for rows in row_blocks(x):
            covered = table.index_select(0, influence_cells(x[rows], grad[rows], self.edges))
            uncovered[rows] = 1.0 - covered.view(-1, x.shape[1]).mean(1)
        return infinite_where_nonfinite(uncovered, x, grad)

    def contributions(
        self, x: Float[Tensor, "row dim"], grad: Float[Tensor, "row dim"]
    ) -> Float[Tensor, "row dim"]:
        """Return each unit's part of the score, one minus its state's coverage."""
        check_fitted_width("NAC", x, len(self.coverage))
        table = self.coverage.to(x.device).flatten()
        covered = table.index_select(0, influence_cells(x, grad, self.edges)).view(x.shape)
        return (1.0 - covered) / x.shape[1]


@final
@dataclass(frozen=True)
class NAC(Detector):
    """One minus the frequency among fitted rows of the state of each unit in this row.

    State of a unit: ``sigmoid(alpha o g)`` with output ``o`` and gradient ``g`` of the divergence
    of the prediction from uniform. Coverage of a bin: rows in it over ``fill`` of all rows, at most
    1. Score: ``1 - mean_u coverage``. Seen from ``o g`` the bins are ``logit(t) / alpha``; the
    outer bins are open: if they are covered, a state beyond all fitted states counts as usual.
    ``"auto"`` chooses ``alpha`` so that the outer bins of the typical unit hold ``fill / n_bins``
    of the rows: ``2 / median_u q(|o g|)`` over living units, ``q`` at ``1 - fill / n_bins``.

    Range        [0, 1]; higher = more unusual. Few distinct values where there are few units.
    Cost         forward and backward; state 4 KB per unit (auto) or 8 n_bins bytes; O(dim) per row.
    Assumes      a gradient that sums over rows (never a mean), the model in eval mode. A number as
                 ``alpha`` must suit the size of ``o g``: flag ``saturated`` where the outer bins of
                 most units are covered, ``coarse`` where only the two in the middle are used.
    Differs      from the paper: ``fill`` is a share of the rows, ``alpha`` needs no unusual data.

    Parameters
    ----------
    n_bins : int, default=50
        Number of thresholds; even.
    fill : float, default=0.05
        Share of the rows from which on a bin counts as fully covered.
    alpha : float or "auto", default="auto"
        Steepness. "auto" re-bins a logarithmic histogram, whose bins are a factor 2^(1/4) wide.

    Examples
    --------
    >>> x = torch.tensor([[-1.0, 0.2], [-0.5, 0.2], [0.0, 0.3], [0.5, 0.9]])
    >>> ones = torch.ones(4, 2)
    >>> scorer = NAC(n_bins=10, fill=0.5, alpha=1.0).fit(x, grad=ones)
    >>> scorer.score(torch.tensor([[0.0, 0.2], [3.0, -3.0]]), ones[:2]).tolist()
    [0.25, 1.0]

    References
    ----------
    liu2024nac
    """

    n_bins: int = 50
    fill: float = 0.05
    alpha: float | Literal["auto"] = "auto"
    paper: ClassVar[str] = "liu2024nac"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"n_bins": 10, "alpha": 0.1})

    def __post_init__(self) -> None:
        if self.n_bins < 4 or self.n_bins % 2:
            raise InputError(f"NAC: expected an even n_bins of at least 4, got {self.n_bins}.")
        check_ranges(self, fill="(0, 1]")
        if isinstance(self.alpha, str) and self.alpha != "auto":
            raise InputError(f"NAC: expected alpha 'auto' or a number, got {self.alpha!r}.")
        if not isinstance(self.alpha, str) and not self.alpha > 0.0:
            raise InputError(f"NAC: expected a positive alpha, got {self.alpha}.")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for histograms of output times gradient."""
        if isinstance(self.alpha, str):
            return {"influence": LogHistogram(("x", "grad"))}
        return {"influence": InfluenceCounts(self.alpha, self.n_bins)}

    def result(self, influence: LogHistogramState | InfluenceCountsState) -> NACScorer:
        """Choose the steepness, fill the grid's histogram, and cap the counts."""
        full = max(1, round(self.fill * influence.n))
        if isinstance(influence, LogHistogramState):
            alpha, flags = _steepness(influence, 1.0 - self.fill / self.n_bins)
            edges = influence_edges(alpha, self.n_bins)
            counts = influence.rebinned(edges)
        else:
            assert not isinstance(self.alpha, str)  # reads takes the other state then
            alpha, counts = self.alpha, influence.counts
            edges, flags = influence_edges(alpha, self.n_bins), _unfit(counts, full)
        coverage = (counts.float() / full).clamp(max=1.0)
        return NACScorer(
            value=float(coverage.mean()),
            n=influence.n,
            range=(0.0, 1.0),
            flags=flags,
            conventions={
                "value": "mean coverage of all bins",
                "alpha": float(alpha),
                "full_bin": full,
                "se": "not given for a scorer: calibrate its scores",
            },
            edges=edges,
            coverage=coverage,
            alpha=float(alpha),
        )


def _steepness(influence: LogHistogramState, share: float) -> tuple[float, tuple[str, ...]]:
    """Return the steepness at which the grid covers a fraction, and a flag if nothing varies."""
    varies = influence.counts.amax(1) < influence.n
    for reached in (share, 1.0):
        reach = influence.quantile(reached, absolute=True)
        living = reach[varies & (reach > 0)]
        if len(living):
            typical = float(living.median())
            if typical <= LEAST_INFLUENCE:
                raise StateError(
                    "NAC: expected output times gradient that is large enough for alpha='auto', "
                    "got "
                    f"at most {LEAST_INFLUENCE:.0e} in most units. Give a number as alpha, such as "
                    "2 over the largest of these products in most units."
                )
            return 2.0 / typical, ("clipped",) if typical <= CLIPPED_BELOW else ()
    return 1.0, ("dead",)


def _unfit(counts: Int[Tensor, "dim bin"], full: int) -> tuple[str, ...]:
    """Return a flag if the given steepness does not suit most units."""
    middle = counts.shape[1] // 2
    is_covered = counts[:, [0, -1]].amax(1) >= max(full, 2)  # one row is no evidence
    if is_covered.double().mean() > 0.5:
        warnings.warn(
            f"NAC: in {int(is_covered.sum())} of {len(counts)} units the fitted rows cover an "
            "outer bin, which includes all values beyond it: out-of-distribution rows may get "
            "low scores. Lower alpha, or use 'auto'.",
            SondeWarning,
            stacklevel=3,
        )
        return ("saturated",)
    in_middle = counts[:, middle - 1 : middle + 1].sum(1) == counts.sum(1)
    return ("coarse",) if in_middle.double().mean() > 0.5 else ()
