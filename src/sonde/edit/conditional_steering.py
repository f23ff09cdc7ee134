"""Conditional steering: the gate, and its accuracy in detecting the condition.

Any fitted detector can be a gate; this one is a direction and a threshold, found together.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.instrument import SAMPLE, Detector, NotLabelled, Where
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import Reducer, Site
from sonde.core.statistic import Statistic
from sonde.edit._directions import Direction
from sonde.stats import ClassMoments, ClassMomentsState, HashSample, HashSampleState, TwoGroups
from sonde.tap import Gate

BELOW_ALL = 1e-6
"""How far below the lowest score a threshold lies that takes every row."""


@final
@dataclass(frozen=True, kw_only=True)
class ConditionScorer(Scorer):
    """Cosine of each row with the condition's direction; the condition holds above ``threshold``.

    ``value`` is the F1 of the threshold on the rows of the fit, ``share`` the share of these rows
    above it.
    """

    vector: Float[Tensor, "dim"]
    threshold: float
    share: float
    positive: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the cosine of each row, higher if the condition holds; 0 for a row of zeros."""
        if x.shape[1] != len(self.vector):
            raise ShapeError(
                f"ConditionalSteering.score: expected dim={len(self.vector)} (as fitted), got "
                f"dim={x.shape[1]}. Fit a second scorer for that site."
            )
        return infinite_where_nonfinite(_cosine(x, self.vector), x)

    def holds(self, x: Float[Tensor, "row dim"]) -> Bool[Tensor, "row"]:
        """Return a mask of the rows for which the condition holds."""
        return self.score(x) > self.threshold

    def gate(self, site: str | Site | None = None, reducer: str | Reducer = "mean") -> Gate:
        """Return the gate for ``sonde.editing(..., gate=...)``, which decides once per prompt.

        Parameters
        ----------
        site : pattern or Site, optional
            Where the condition was fitted; by default the first site that is edited.
        reducer : str or Reducer, default="mean"
            The reducer of the rows of the fit.
        """
        return Gate(self, self.threshold, site, reducer)


@final
@dataclass(frozen=True)
class ConditionalSteering(Detector):
    """Test of whether a prompt meets a condition: its cosine with a direction, and a threshold.

    The direction leads from the mean of all other rows to that of class ``positive``. The threshold
    has the highest F1 on a sample of the rows, half way between two scores. Fit it at every block
    and take the site of highest ``value``; then steer by a vector of another fit, at any later
    site, through ``gate``.

    Range        [-1, 1]; higher = more like the condition.
    Cost         one pass; state 8 (dim^2 + classes dim) + 4 m dim bytes; result O(m dim + m ln m).
    Assumes      labels; all classes but ``positive`` are one side.
    Differs      from the paper: the cosine keeps its sign; the prompt's states are reduced before
                 they are compared, as in the fit, not after; every threshold between two rows
                 is tried, not a grid.

    Parameters
    ----------
    positive : int, default=1
        The class for which the condition holds.
    m : int, default=2048
        Most rows in the sample.

    Examples
    --------
    >>> x = [[1.0, 0.0], [2.0, 0.5], [0.0, 1.0], [0.5, 2.0]]
    >>> scorer = ConditionalSteering().fit(x, [1, 1, 0, 0])
    >>> scorer.value, scorer.holds(torch.tensor([[3.0, 1.0], [1.0, 3.0]])).tolist()
    (1.0, [True, False])

    References
    ----------
    lee2024cast
    """

    positive: int = 1
    m: int = SAMPLE
    paper: ClassVar[str] = "lee2024cast"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"positive": 0, "m": 32})

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 2")

    @property
    def usual(self) -> Where:
        """Filter of rows that are not labelled ``positive``."""
        return NotLabelled(self.positive)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each class, and a sample of rows with their labels."""
        return {
            "by_class": ClassMoments("diag"),
            "sample": HashSample(self.m),
            "labels": HashSample(self.m, "label"),
        }

    def result(
        self, by_class: ClassMomentsState, sample: HashSampleState, labels: HashSampleState
    ) -> ConditionScorer:
        """Compute the difference of the means, and the threshold with the highest F1 along it."""
        groups = TwoGroups.of("ConditionalSteering", by_class, self.positive)
        vector = Direction.along(groups.gap, groups.gap, groups.total / groups.n_rows).unit
        label = labels.rows.to(sample.rows.device)
        score = _cosine(sample.rows.double(), vector)[label >= 0]
        threshold, f1 = best_threshold(score, label[label >= 0] == self.positive)
        dead = not bool(vector.any())
        return ConditionScorer(
            value=f1,
            n=groups.n_rows,
            range=(0.0, 1.0),
            flags=(
                *groups.flags,
                *(() if sample.is_everything else ("sampled",)),
                *(("dead",) if dead else ()),
            ),
            conventions={
                "value": "F1 of the threshold, on the rows on which it was chosen",
                "positive": self.positive,
                "se": "not given for a scorer: calibrate its scores",
            },
            vector=vector,
            threshold=threshold,
            share=float((score > threshold).double().mean()),
            positive=self.positive,
        )


def best_threshold(score: Float[Tensor, "row"], holds: Bool[Tensor, "row"]) -> tuple[float, float]:
    """Return the threshold with the highest F1 for rows above it, and this F1.

    Of several equally good thresholds, the one in the widest gap between two scores is taken.

    Examples
    --------
    >>> best_threshold(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([False, False, True]))
    (2.0, 1.0)
    """
    order = score.argsort(descending=True)
    ranked, hits = score[order].double(), holds[order].double().cumsum(0)
    taken = torch.arange(1, len(score) + 1, device=score.device)
    f1 = 2 * hits / (taken + holds.sum())
    gap = -ranked.diff(append=ranked[-1:] - BELOW_ALL)
    f1 = torch.where(gap > 0, f1, -1.0)
    best = torch.where(f1 >= f1.max() - 1e-12, gap, -1.0)
    at = int(best.argmax())
    return float(ranked[at] - gap[at] / 2), float(f1[at])


def _cosine(x: Float[Tensor, "row dim"], unit: Float[Tensor, "dim"]) -> Float[Tensor, "row"]:
    """Return the cosine of rows with a unit vector, in at least 32 bits."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    length = wide.norm(dim=1)
    return (wide @ unit.to(wide)) / torch.where(length > 0, length, torch.ones_like(length))
