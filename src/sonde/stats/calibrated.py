"""A detector fitted and calibrated in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.calibration import Calibration, Guarantee
from sonde.core.errors import CalibrationError
from sonde.core.hashing import rank_key
from sonde.core.instrument import SAMPLE, AsScored, Detector, Instrument, Read, score_needs
from sonde.core.reduction import Reduced
from sonde.core.result import Result, Scorer
from sonde.core.state import LATER
from sonde.core.statistic import Span, Statistic
from sonde.engine.selection import SITE_COLUMNS
from sonde.stats.class_calibration import By, ClassCalibration
from sonde.stats.hash_sample import HashSample, HashSampleState
from sonde.stats.held_scores import HeldScores, HeldScoresState, SampledCalibration
from sonde.stats.sequences import by_example, example_numbers

REDUCED_SAMPLE = 32_768
EXAMPLE = ("ids", "occurrence", "piece")
WHOSE = (*EXAMPLE, "position")
AnyCalibration = Calibration | SampledCalibration | ClassCalibration
Held = dict[str, tuple[HashSampleState, ...]]


@final
@dataclass(frozen=True)
class Lengths:
    """Row counts of the examples with calibrated scores."""

    n: int
    mean: float
    longest: int

    @classmethod
    def of(cls, n_rows: Int[Tensor, "example"]) -> "Lengths":
        """Return the lengths of examples with these row counts."""
        return cls(len(n_rows), float(n_rows.double().mean()), int(n_rows.max()))

    def merge(self, other: "Lengths") -> "Lengths":
        """Return the lengths of both sets of examples."""
        n = self.n + other.n
        mean = (self.mean * self.n + other.mean * other.n) / n
        return Lengths(n, mean, max(self.longest, other.longest))


@final
@dataclass(frozen=True, kw_only=True)
class CalibratedScorer(Scorer):
    """A scorer with the scores of held-out rows, from which p-values are computed.

    Its result fields (``value``, ``unit``, ``flags``, ...) are those of the fitted scorer.
    """

    scorer: Scorer
    calibration: AnyCalibration
    reduction: str | None = None
    lengths: "Lengths | None" = None

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        calibration: AnyCalibration,
        reduction: str | None,
        lengths: "Lengths | None" = None,
    ) -> "CalibratedScorer":
        """Return a fitted scorer with its calibration."""
        parts: dict[str, Any] = {f.name: getattr(scorer, f.name) for f in fields(Result)}
        return cls(
            scorer=scorer, calibration=calibration, reduction=reduction, lengths=lengths, **parts
        )

    def p_value(self, scores: Any, label: Int[Tensor, "row"] | None = None) -> Float[Tensor, "row"]:
        """Return each score's p-value, within its class if there are classes."""
        if isinstance(self.calibration, ClassCalibration):
            return self.calibration.p_value(scores, label)
        return self.calibration.p_value(scores)

    def score(self, *columns: Any, **_: Any) -> Tensor:
        """Return the scores of the fitted scorer."""
        return self.scorer.score(*columns)

    def reduced(
        self,
        scores: Float[Tensor, "row"],
        example: Int[Tensor, "_row"],
        how: str,
        *columns: Any,
        **_: Any,
    ) -> Reduced:
        """Return the scores of examples, as reduced by the fitted scorer."""
        return self.scorer.reduced(scores, example, how, *columns)

    def contributions(self, *columns: Any, **_: Any) -> Float[Tensor, "row dim"] | None:
        """Return each unit's contribution to the fitted scorer's scores."""
        return self.scorer.contributions(*columns)

    @property
    def by(self) -> str | None:
        """Source of the classes within which p-values are valid, or None."""
        return self.calibration.by if isinstance(self.calibration, ClassCalibration) else None


@final
@dataclass(frozen=True)
class Kept:
    """Stored scores of a fitted detector that is calibrated on other rows.

    Parameters
    ----------
    m, top : int
        Scores of each class in a hash sample, and largest scores kept beside the sample.
    by : {"label", "predicted"} or None
        Calibrate within each class.
    guarantee : {"marginal", "pac"}
        What the p-values promise: a rate of false alarms in the mean over calibrations
        (``marginal``), or with probability ``1 - delta`` for this calibration (``pac``).
    delta : float
        Probability that a ``pac`` promise may fail.
    pooled_below : int
        Classes with fewer scores are compared with all scores.
    """

    m: int = 10_000
    top: int = 1_000
    by: By | None = None
    guarantee: Guarantee = "marginal"
    delta: float = 0.05
    pooled_below: int = field(default=0, metadata={LATER: True})

    @property
    def statistic(self) -> HeldScores:
        """Statistic that stores the scores."""
        return HeldScores(self.m, self.top)

    def calibration(self, held: HeldScoresState) -> AnyCalibration:
        """Return the calibration of stored scores."""
        if self.by is None:
            return held.calibration(None, self.guarantee, self.delta)
        return ClassCalibration.of(
            self.by, held, self.guarantee, self.delta, pooled_below=self.pooled_below
        )


@final
@dataclass(frozen=True)
class _ScoresOf(Statistic[HeldScoresState]):
    """Scores of one fitted detector; each detector has its own kind of state."""

    detector: Detector
    kept: Kept
    reduction: str | None
    span: ClassVar[Span] = "pair"  # one state, about all sites of the detector

    def observe(
        self, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"], draw: Int[Tensor, "row"]
    ) -> HeldScoresState:
        """Return the stored scores of these rows."""
        return self.kept.statistic.observe(x, label, draw)

    def merge(self, a: HeldScoresState, b: HeldScoresState) -> HeldScoresState:
        """Return the joined stored scores."""
        return self.kept.statistic.merge(a, b)


@final
@dataclass(frozen=True)
class Calibrated(Instrument):
    """A detector fitted on one part and calibrated on a hash sample of the held-out part.

    If rows come in groups, the row of smallest draw of each group enters the calibration; if there
    are too many groups, those of smallest draw enter, whatever their sizes. The held-out scores are
    then exchangeable. With a ``reduction`` an example's rows make a single score, whole groups are
    sampled, and a single example of each group enters. Rows that are not finite enter, and score
    ``+inf`` as in use; rows that the labels mark as unusual do not. If a score is about all sites,
    their rows are joined.

    With ``kept``, the detector was calibrated later on other rows, whose scores are kept.

    Parameters
    ----------
    detector : Detector
        The detector that is fitted and calibrated.
    m : int, default=2048
        Largest number of held-out rows that are kept for the calibration.
    reduction : str, optional
        How an example's scores become one, such as ``"max"``; None keeps a score for each row.
    kept : Kept, optional
        Scores of other rows on which the detector was calibrated later.
    """

    estimates: ClassVar[bool] = False
    detector: Detector
    m: int = SAMPLE
    reduction: str | None = None
    kept: Kept | None = None

    @classmethod
    def of(cls, detector: Detector, reduction: str | None, m: int = 0) -> "Calibrated":
        """Return a detector calibrated on at least ``m`` rows; ``reduction`` may raise ``m``."""
        least = SAMPLE if reduction is None else REDUCED_SAMPLE
        return cls(detector, m if reduction is None and m else max(m, least), reduction)

    @property
    def span(self) -> Span:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sites of one result, as for the detector."""
        return self.detector.span

    @property
    def title(self) -> str:
        """Name of the detector in messages."""
        return self.detector.title

    @property
    def held_columns(self) -> tuple[str, ...]:
        """The columns of held-out rows that are stored."""
        needs = score_needs(self.detector)
        return needs if self.reduction is None else tuple(dict.fromkeys((*needs, *WHOSE)))

    def reads(self) -> dict[str, Statistic[Any] | Read]:
        """Return the detector's requests, and those for held-out columns or scores."""
        if self.kept is not None:
            scores = _ScoresOf(self.detector, self.kept, self.reduction)
            return {**self.detector.all_reads(), "held_scores": Read(scores, part="held")}
        groups = "one" if self.reduction is None else True
        where = AsScored(self.detector.usual)
        held = {
            f"held_{c}": Read(HashSample(self.m, column=c, groups=groups), where, "held")
            for c in self.held_columns
        }
        return {**self.detector.all_reads(), **held}

    def result(self, *_: Any, **states: Any) -> CalibratedScorer:
        """Fit the scorer, and score the held-out rows or use their stored scores."""
        if self.kept is not None:
            scores = states.pop("held_scores")
            calibration = self.kept.calibration(_only(scores))
            return CalibratedScorer.of(self.detector.result(**states), calibration, self.reduction)
        held = self._held({c: states.pop(f"held_{c}") for c in self.held_columns})
        scorer = self.detector.result(**states)
        needs, lengths = score_needs(self.detector), None
        if self.reduction is None:
            held_scores = _row_scores(scorer, held, needs, self.span)
        else:
            held_scores, lengths = _example_scores(scorer, held, needs, self.reduction, self.span)
        calibration = Calibration.from_scores(held_scores)
        return CalibratedScorer.of(scorer, calibration, self.reduction, lengths)

    def _held(self, samples: dict[str, Any]) -> Held:
        """Return each column's samples: one per site if the column differs between sites."""
        if self.span != "all":
            return {c: (sample,) for c, sample in samples.items()}
        return {c: aligned(s if c in SITE_COLUMNS else s[:1], s) for c, s in samples.items()}


def _only(state: Any) -> HeldScoresState:
    return state[0] if isinstance(state, tuple) else state


def aligned(
    samples: Sequence[HashSampleState], at: Sequence[HashSampleState]
) -> tuple[HashSampleState, ...]:
    """Return the samples cut to the rows that all sites hold, by sampling key."""
    shared = at[0].draw
    for sample in at[1:]:
        if not torch.equal(sample.draw, at[0].draw):
            shared = shared[torch.isin(shared, sample.draw)]
    cut = []
    for sample in samples:
        keep = torch.nonzero(torch.isin(sample.draw, shared)).flatten()
        columns = {n: getattr(sample, n)[keep] for n in ("draw", "group", "group_draw")}
        rows = sample.rows[keep.to(sample.rows.device)]
        cut.append(replace(sample, rows=rows, **columns))
    return tuple(cut)


def _taken(held: Held, column: str, rows: Int[Tensor, "kept"], span: Span) -> Any:
    """Return some rows of a column, or of each entry if it is a tuple of columns by site."""
    parts = tuple(sample.rows[rows] for sample in held[column])
    return parts if span == "all" and column in SITE_COLUMNS else parts[0]


def _row_scores(
    scorer: Scorer, held: Held, needs: tuple[str, ...], span: Span
) -> Float[Tensor, "group"]:
    """Return the score of a single row per group."""
    keep = held[needs[0]][0].first_of_each_group()
    return scorer.score(*(_taken(held, c, keep, span) for c in needs))


def _example_scores(
    scorer: Scorer,
    held: Held,
    needs: tuple[str, ...],
    how: str,
    span: Span,
) -> tuple[Float[Tensor, "group"], Lengths]:
    """Return scores of one complete example per group, and the examples' row counts.

    The example whose first row has the smallest draw is taken, so that long examples are not
    preferred.
    """
    (ids,) = held["ids"]
    whole = ids.whole_groups()
    if len(whole) == 0:
        raise CalibrationError(
            f"fit: expected groups (documents) of at most {len(ids.draw):,} held-out rows to "
            "calibrate scores of examples, got a group with more rows. Calibrate in two steps "
            "instead, without held-out rows in the fit: sonde fit METHODS MODEL DATA "
            "--calibrate 0 -o fitted.sonde, then sonde calibrate fitted.sonde MODEL OTHER "
            f"--reduction '{how}' -o calibrated.sonde with rows that were not used in the fit; "
            "or calibrate rows (--reduction rows).",
            1,
        )
    example = example_numbers(*(held[c][0].rows[whole] for c in EXAMPLE))
    columns = [_taken(held, c, whole, span) for c in needs]
    reduced = scorer.reduced(scorer.score(*columns), example, how, *columns)
    scores = torch.empty_like(reduced.score)
    scores[reduced.example.to(scores.device)] = reduced.score
    order = torch.argsort(rank_key(ids.draw[whole]), stable=True)
    first = order[by_example(example[order], held["position"][0].rows[whole][order]).first]
    draw = rank_key(ids.draw[whole][first])
    chosen = by_example(ids.group[whole][first], draw).first
    return scores[chosen], Lengths.of(torch.bincount(example)[chosen])
