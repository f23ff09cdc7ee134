"""Fraction of a unit's possible states that are reached: a criterion for checkpoints.

It needs gradients: a stream with ``objective="kl_uniform"``, at the last pooled layer. To tell
whether an input is unusual, see the detector ``NAC``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats.influence_bins import even_edges, influence_counts, influence_edges

Grid = Literal["even", "centred"]
Normalise = Literal["bins", "paper"]


@dataclass(frozen=True)
class RightInfluenceState(State):
    """Number of correctly predicted rows in each bin of each unit."""

    n_rows: int
    n_unlabelled: int
    largest_label: int
    n_classes: int
    n: int
    counts: Int[Tensor, "dim bin"]


@final
@dataclass(frozen=True)
class RightInfluence(Statistic[RightInfluenceState]):
    """Histogram of output times gradient over correctly predicted rows.

    The histogram does not depend on how rows are divided.

    Parameters
    ----------
    alpha : float
        Steepness of the sigmoid.
    n_bins : int
        Number of thresholds.
    grid : {"even", "centred"}
    """

    alpha: float
    n_bins: int
    grid: Grid

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        grad: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"],
        logits: Float[Tensor, "row class"],
    ) -> RightInfluenceState:
        """Return the counts of a batch."""
        right = (logits.argmax(1).to(x.device) == label.to(x.device)) & (label >= 0).to(x.device)
        edges = even_edges if self.grid == "even" else influence_edges
        return RightInfluenceState(
            len(x),
            int((label < 0).sum()),
            int(label.max()),
            logits.shape[1],
            int(right.sum()),
            influence_counts(x[right], grad[right], edges(self.alpha, self.n_bins)),
        )

    def merge(self, a: RightInfluenceState, b: RightInfluenceState) -> RightInfluenceState:
        """Return the counts of both states."""
        return RightInfluenceState(
            a.n_rows + b.n_rows,
            a.n_unlabelled + b.n_unlabelled,
            max(a.largest_label, b.largest_label),
            max(a.n_classes, b.n_classes),
            a.n + b.n,
            a.counts + b.counts,
        )


@final
@dataclass(frozen=True, kw_only=True)
class ActivationCoverageResult(Result):
    """Mean coverage over units; ``coverage`` holds the value of each unit."""

    title: ClassVar[str] = "Coverage of units"
    direction: Direction = "higher"
    coverage: Float[Tensor, "dim"]


@final
@dataclass(frozen=True)
class ActivationCoverage(Instrument):
    """Fraction of states reached by correctly predicted rows, averaged over units.

    A unit's state is ``sigmoid(alpha o g)`` with output ``o`` and gradient ``g`` of the divergence
    of the prediction from uniform. A bin of states is covered by ``min(rows in it / full, 1)``;
    a unit's coverage is the mean over bins. Compare checkpoints on the same rows: a model whose
    right predictions use more states is expected to do better on other domains.

    Range        [0, 1]; higher = more states. ``conventions["most"]`` is the most that these rows
                 could reach: no more than ``n / (full bins)``.
    Cost         forward and backward; state 8 n_bins bytes per unit.
    Assumes      labels that are the model's classes; a gradient that sums over rows (never a mean),
                 the model in eval mode; ``alpha`` that spreads the states, which depends on the
                 model: ``conventions["single_bin"]`` is the share of units whose states all lie in
                 one bin and so tell nothing. Raise ``alpha`` where that share is large.
    Differs      from the paper: the value is divided by the number of bins that can be reached
                 (``normalise="paper"``: by ``n_bins``), and a state of exactly 1 lies in the last
                 bin instead of in none.

    Parameters
    ----------
    n_bins : int, default=50
        Number of thresholds.
    full : int, default=500
        Number of rows that covers a bin fully.
    alpha : float, default=0.1
        Steepness.
    normalise : {"bins", "paper"}, default="bins"
        What the sum over bins is divided by.
    grid : {"even", "centred"}, default="even"
        Thresholds evenly spaced in [0, 1], or those of ``NAC``, fine around 0.5.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[-1.0, 0.2], [-0.5, 0.2], [0.0, 0.3], [0.5, 0.9]])
    >>> y = torch.tensor([0, 1, 0, 1])
    >>> columns = {"grad": torch.ones(4, 2), "label": y, "logits": torch.eye(2)[y]}
    >>> found = activation_coverage(x, **columns, n_bins=10, full=2, alpha=1.0, grid="centred")
    >>> round(found.value, 5)
    0.21875

    References
    ----------
    liu2024nac
    """

    n_bins: int = 50
    full: int = 500
    alpha: float = 0.1
    normalise: Normalise = "bins"
    grid: Grid = "even"
    least_rows: ClassVar[int] = 1
    paper: ClassVar[str] = "liu2024nac"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"full": 4},
        {"n_bins": 10, "full": 2, "alpha": 1.0, "grid": "centred", "normalise": "paper"},
    )

    def __post_init__(self) -> None:
        odd = self.grid == "centred" and (self.n_bins < 4 or self.n_bins % 2 == 1)
        if self.n_bins < 3 or odd:
            raise InputError(
                "ActivationCoverage: expected n_bins of at least 3, or even and at least 4 with "
                f'grid="centred", got {self.n_bins}.'
            )
        check_ranges(self, full=">= 1", alpha="> 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for counts over correctly predicted rows."""
        return {"right": RightInfluence(self.alpha, self.n_bins, self.grid)}

    def result(self, right: RightInfluenceState) -> ActivationCoverageResult:
        """Cap the counts and average them over units."""
        self._check(right)
        covered = (right.counts.double() / self.full).clamp(max=1.0).sum(1)
        bins = right.counts.shape[1]
        coverage = covered / (bins if self.normalise == "bins" else self.n_bins)
        return ActivationCoverageResult(
            value=float(coverage.mean()),
            n=right.n,
            range=(0.0, 1.0),
            flags=("unlabelled",) if right.n_unlabelled else (),
            conventions={
                "rows": "labelled and predicted as their label",
                "left_out": right.n_rows - right.n,
                "bins": bins,
                "divided_by": bins if self.normalise == "bins" else self.n_bins,
                "full_bin": self.full,
                "single_bin": float((right.counts.amax(1) == right.n).double().mean()),
                "most": min(1.0, right.n / (self.full * bins)),
                "se": "not given: the value grows with the rows; compare checkpoints on the same",
            },
            coverage=coverage,
        )

    def _check(self, right: RightInfluenceState) -> None:
        if right.largest_label >= right.n_classes:
            raise InputError(
                f"ActivationCoverage: expected labels below {right.n_classes}, the number of "
                f"logits, got {right.largest_label}. Number the labels as the model numbers its "
                "classes."
            )
        if right.n == 0:
            raise InputError(
                "ActivationCoverage: expected rows that the model classifies correctly, got "
                f"none among {right.n_rows}. Give labelled rows that the model classifies "
                "correctly."
            )


activation_coverage = as_function(ActivationCoverage, "label", "grad", "logits")
