"""A detector with its calibration, fitted in the same pass."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from sonde.core.calibration import Calibration
from sonde.core.instrument import SAMPLE, Detector, Instrument, Read, score_needs
from sonde.core.result import Scorer
from sonde.core.statistic import Statistic
from sonde.stats.hash_sample import HashSample


@final
@dataclass(frozen=True, kw_only=True)
class CalibratedScorer(Scorer):
    """A scorer with the scores of held-out rows, which turn scores into p-values."""

    scorer: Scorer
    calibration: Calibration

    def score(self, *columns: Any, **_: Any) -> Tensor:
        """Return the scores of the fitted scorer."""
        return self.scorer.score(*columns)


@final
@dataclass(frozen=True)
class Calibrated(Instrument):
    """A detector on the fit part, calibrated on a hash sample of the held part, in the same pass.

    Where rows come in groups, one row of each group (that of smallest draw) enters the calibration,
    so that the held-out scores are exchangeable.
    """

    detector: Detector
    m: int = SAMPLE

    def reads(self) -> dict[str, Statistic[Any] | Read]:
        """Read what the detector reads, and the columns of the held-out rows."""
        held = {
            f"held_{c}": Read(HashSample(self.m, column=c), part="held")
            for c in score_needs(self.detector)
        }
        return {**self.detector.all_reads(), **held}

    def result(self, *_: Any, **states: Any) -> CalibratedScorer:
        """Fit the scorer and score the held-out rows."""
        held = [states.pop(f"held_{c}") for c in score_needs(self.detector)]
        scorer = self.detector.result(**states)
        keep = held[0].first_of_each_group()
        columns = [sample.rows[keep] for sample in held]
        return CalibratedScorer(
            scorer=scorer, calibration=Calibration.from_scores(scorer.score(*columns)), n=scorer.n
        )
