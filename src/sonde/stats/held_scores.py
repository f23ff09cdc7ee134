"""Scores of any number of held-out rows in constant memory, by class, for calibration."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import betainc, betaincinv  # pyright: ignore
from torch import Tensor

from sonde.core.calibration import Guarantee, flat_scores, levels_of_ranks, needed_scores
from sonde.core.errors import CalibrationError, InputError, ShapeError
from sonde.core.hashing import rank_key
from sonde.core.ranges import check_ranges
from sonde.core.state import State
from sonde.core.statistic import Statistic

NO_LABEL = -1


@dataclass(frozen=True)
class ClassScores(State):
    """Kept scores of a class: of ``n`` scores, a random sample and the largest scores.

    The sample consists of the scores with the smallest sampling keys.
    """

    label: int
    n: int
    scores: Float[Tensor, "sample"]
    draw: Int[Tensor, "sample"]
    top: Float[Tensor, "top"]
    top_draw: Int[Tensor, "top"]


@dataclass(frozen=True)
class HeldScoresState(State):
    """Scores by class in ascending order of label; -1 = unlabelled."""

    classes: tuple[ClassScores, ...]
    m: int
    top: int

    @property
    def n(self) -> int:
        """Number of scores seen."""
        return sum(c.n for c in self.classes)

    @property
    def labels(self) -> list[int]:
        """Labels of the classes with scores."""
        return [c.label for c in self.classes]

    def calibration(
        self, label: int | None = None, guarantee: Guarantee = "marginal", delta: float = 0.05
    ) -> "SampledCalibration":
        """Return the calibration of all scores, or of one class.

        Raises
        ------
        CalibrationError
            If there is no score of that class; use the calibration of all scores then.
        """
        parts = [c for c in self.classes if label is None or c.label == label]
        if not parts:
            raise CalibrationError(
                f"HeldScores.calibration: there is no held-out score of class {label}, only "
                f"of the classes {self.labels}. Use the calibration of all classes for class "
                f"{label}.",
                1,
            )
        c = _smallest(NO_LABEL, _joined(parts), self.m, self.top)
        n = c.n if len(c.draw) == self.m else len(c.draw)
        spare = ~torch.isin(c.draw, c.top_draw)
        return SampledCalibration(c.top.flip(0), c.scores[spare].sort().values, n, guarantee, delta)

    def drawn(self) -> tuple[Int[Tensor, "sample"], bool]:
        """Return the sampled scores' sampling keys, ascending, and whether scores were dropped."""
        c = _smallest(NO_LABEL, _joined(list(self.classes)), self.m, self.top)
        return c.draw, len(c.draw) == self.m and c.n > self.m


@final
@dataclass(frozen=True)
class HeldScores(Statistic[HeldScoresState]):
    """Scores of held-out rows by class: a hash sample and the largest, however rows are divided.

    Give it one score for each group: a p-value of a document needs scores of documents. A row that
    arrives twice is kept once. If more scores arrive than are kept, such a row counts twice in
    ``n``.

    Parameters
    ----------
    m : int, default=10_000
        Most scores of a class in its sample.
    top : int, default=1_000
        How many of the largest are kept: false-alarm rates up to ``top / (n + 1)`` are those of
        all ``n`` scores, not of the sample.
    max_classes : int, default=1024
        Labels of this number or more are refused.
    column : int, default=0
        Which column of the rows is the score.
    """

    m: int = 10_000
    top: int = 1_000
    max_classes: int = 1024
    column: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 1", top=">= 1", max_classes=">= 1", column=">= 0")

    def observe(
        self, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"], draw: Int[Tensor, "row"]
    ) -> HeldScoresState:
        """Return the stored scores of these rows."""
        if x.shape[1] <= self.column:
            raise ShapeError(
                f"HeldScores.observe: expected a column {self.column}, got {x.shape[1]} columns."
            )
        scores, label = x[:, self.column].detach().cpu().double(), label.clamp(min=NO_LABEL)
        if bool(scores.isnan().any()) or int(label.max()) >= self.max_classes:
            raise InputError(
                "HeldScores.observe: expected scores without NaN and labels below "
                f"{self.max_classes}, got {int(scores.isnan().sum())} NaN and label "
                f"{int(label.max())}."
            )
        classes = []
        for k in label.unique().tolist():
            s, d = scores[label == k], draw[label == k]
            all_of_it = ClassScores(k, len(s), s, d, s, d)
            classes.append(_smallest(k, all_of_it, self.m, self.top))
        return HeldScoresState(tuple(classes), self.m, self.top)

    def merge(self, a: HeldScoresState, b: HeldScoresState) -> HeldScoresState:
        """Return the joined stored scores."""
        classes = []
        for k in sorted({*a.labels, *b.labels}):
            parts = [c for c in (*a.classes, *b.classes) if c.label == k]
            classes.append(_smallest(k, _joined(parts), self.m, self.top))
        return HeldScoresState(tuple(classes), self.m, self.top)


@final
@dataclass(frozen=True)
class SampledCalibration(State):
    """Split-conformal calibration from the largest scores and a sample of the others.

    A score above the smallest of the ``T`` largest has the p-value of all ``n`` scores. Any other
    score lies among the ``n + 1 - T`` lower scores, from which the sample is drawn uniformly. With
    its p-value ``q`` in that sample, ``(T + (n + 1 - T) q) / (n + 1)`` is a p-value among all
    scores: exact at every level, ties included.
    Under ``pac`` both parts hold with ``1 - delta / 2``, and thresholds and p-values decide alike.

    Parameters
    ----------
    tail : Float[Tensor, "top"]
        The largest scores, ascending.
    scores : Float[Tensor, "sample"]
        A sample of the others, ascending.
    n : int
        Number of scores that ``tail`` and ``scores`` come from.
    guarantee : {"marginal", "pac"}, default="marginal"
        Promise about the rate of false alarms: ``marginal`` keeps it in the mean over calibration
        sets, ``pac`` keeps it for this calibration set, with probability ``1 - delta``.
    delta : float, default=0.05
        Probability that a ``pac`` promise may fail.

    Examples
    --------
    >>> scores, draw = torch.arange(1000.0)[:, None], torch.arange(1000)
    >>> state = HeldScores(m=100, top=20).observe(scores, draw * 0, draw)
    >>> found = state.calibration()
    >>> found.threshold(0.01), [round(p, 4) for p in found.p_value([995.0, 2000.0]).tolist()]
    (990.0, [0.006, 0.001])

    References
    ----------
    vovk2005alrw, bates2023outliers
    """

    tail: Float[Tensor, "top"]
    scores: Float[Tensor, "sample"]
    n: int
    guarantee: Guarantee = "marginal"
    delta: float = 0.05

    def p_value(self, scores: Any) -> Float[Tensor, "row"]:
        """Return the smallest level at which each score raises an alarm, in (0, 1]."""
        values = flat_scores("SampledCalibration", scores)
        top, m, rest = len(self.tail), len(self.scores), self._mass_above
        above = top - np.searchsorted(self._sorted[0], values)
        below = np.searchsorted(self._sorted[1], values)
        q = levels_of_ranks(1 + m - below, m, self.guarantee, self.delta / 2)
        rank = np.minimum(1 + above, top + 1)
        level = levels_of_ranks(rank, self.n, self.guarantee, self.delta)
        levels = np.where(above < top, level, np.maximum(level, rest + (1 - rest) * q))
        return torch.from_numpy(levels).to(self.scores.device)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        # copies: workers move tensors to shared memory, and a view would read what was freed
        return self.tail.detach().cpu().numpy().copy(), self.scores.detach().cpu().numpy().copy()

    def threshold(self, alpha: float) -> float:
        """Return the threshold above which a score raises an alarm at level ``alpha``.

        Raises
        ------
        CalibrationError
            If there are too few held-out scores.
        """
        if not 0.0 < alpha < 1.0:
            raise InputError(f"SampledCalibration: expected alpha in (0, 1), got {alpha}.")
        top = len(self.tail)
        rank = self._rank(alpha, self.n, self.delta)
        if rank == 0:
            needed = self.needed(alpha)
            raise CalibrationError(
                f"SampledCalibration.threshold: level {alpha:g} needs at least {needed} held-out "
                f"scores ({self.guarantee}), got {self.n}. Hold out more rows or raise the level.",
                needed,
            )
        if rank <= top:
            return float(self.tail[top - rank])
        lower = self._rank_below(alpha)
        return float(self.scores[-lower] if lower else self.tail[0])

    def needed(self, alpha: float) -> int:
        """Return the smallest number of held-out scores that allows level ``alpha``."""
        return needed_scores(alpha, self.guarantee, self.delta)

    def rate_interval(self, alpha: float, confidence: float = 0.9) -> tuple[float, float]:
        """Return an interval for the true false-alarm rate, given this calibration set.

        If the threshold lies below the kept tail, both tail and sample are uncertain: each takes
        half of the error probability.
        """
        rank, top, n = self._rank(alpha, self.n, self.delta), len(self.tail), self.n
        tail = (1.0 - confidence) / 2
        if rank == 0:
            return 0.0, 0.0
        if rank <= top:
            return _ends(tail, rank, n + 1 - rank)
        lower = self._rank_below(alpha)
        low, high = _ends(tail / 2, top, n + 1 - top)
        if lower == 0:
            return low, high
        more = _ends(tail / 2, lower, len(self.scores) + 1 - lower)
        return low + (1 - low) * more[0], high + (1 - high) * more[1]

    def _rank_below(self, alpha: float) -> int:
        """Return the threshold's index among the sample's largest scores; 0 = the tail's least."""
        rest = self._mass_above
        lower = (alpha - rest) / (1 - rest)
        return self._rank(lower, len(self.scores), self.delta / 2) if lower > 0 else 0

    @cached_property
    def _mass_above(self) -> float:
        """Probability above the tail's smallest score; for ``pac``, its upper bound."""
        top = np.array([len(self.tail)])
        return float(levels_of_ranks(top, self.n, self.guarantee, self.delta / 2)[0])

    def _rank(self, alpha: float, n: int, delta: float) -> int:
        """Return how many of ``n`` scores may exceed a threshold."""
        rank = math.floor(alpha * (n + 1) + 1e-9)
        if self.guarantee == "marginal" or rank == 0:
            return min(rank, n)
        low, high = 0, min(rank, n)
        while low < high:
            middle = (low + high + 1) // 2
            kept = float(betainc(middle, n + 1 - middle, alpha)) >= 1 - delta
            low, high = (middle, high) if kept else (low, middle - 1)
        return low


def _ends(tail: float, a: int, b: int) -> tuple[float, float]:
    """Return the quantiles ``tail`` and ``1 - tail`` of a beta variable."""
    return float(betaincinv(a, b, tail)), float(betaincinv(a, b, 1.0 - tail))


def _joined(parts: list[ClassScores]) -> ClassScores:
    scores, draw, top, top_draw = (
        torch.cat([getattr(c, name) for c in parts])
        for name in ("scores", "draw", "top", "top_draw")
    )
    return ClassScores(NO_LABEL, sum(c.n for c in parts), scores, draw, top, top_draw)


def _smallest(label: int, c: ClassScores, m: int, top: int) -> ClassScores:
    """Return a class cut to its stored scores; of equal scores, those of smaller sampling key."""
    order = _fresh(c.draw, torch.argsort(rank_key(c.draw), stable=True))[:m]
    by_draw = _fresh(c.top_draw, torch.argsort(rank_key(c.top_draw), stable=True))
    by_score = torch.argsort(c.top[by_draw], descending=True, stable=True)
    best = by_draw[by_score][:top]
    return ClassScores(label, c.n, c.scores[order], c.draw[order], c.top[best], c.top_draw[best])


def _fresh(draw: Tensor, order: Tensor) -> Tensor:
    """Return the row indices by sampling key, each row once."""
    ordered = draw[order]
    fresh = torch.ones(len(order), dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return order[fresh]
