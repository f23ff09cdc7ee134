"""Calibrations by class, and one over all classes for unseen classes."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.calibration import Guarantee
from sonde.core.errors import CalibrationError
from sonde.core.state import State
from sonde.stats.held_scores import HeldScoresState, SampledCalibration

By = Literal["label", "predicted"]


@dataclass(frozen=True)
class ClassCalibration(State):
    """Split-conformal calibration within each class, with a valid false-alarm rate in each.

    The class of a row must be known when it is scored: its label where the data has one, or the
    class that the model predicts. A class that was not seen, or has fewer scores than
    ``pooled_below``, is compared with all scores: the rate is then kept over all rows, not within
    the class.

    Parameters
    ----------
    by : {"label", "predicted"}
    labels : Int[Tensor, "class"]
        Ascending.
    each : tuple of SampledCalibration
        One for each label.
    whole : SampledCalibration
        Of all scores.

    References
    ----------
    vovk2005alrw
    """

    by: str
    labels: Int[Tensor, "class"]
    each: tuple[SampledCalibration, ...]
    whole: SampledCalibration

    @classmethod
    def of(
        cls,
        by: By,
        held: HeldScoresState,
        guarantee: Guarantee,
        delta: float,
        *,
        pooled_below: int = 0,
    ) -> "ClassCalibration":
        """Return the calibrations of held-out scores, by class.

        Classes with fewer than ``pooled_below`` scores get no calibration of their own.
        """
        labels = [label for label in held.labels if label >= 0]
        if not labels:
            raise CalibrationError(
                f"calibrate: expected classes by {by}, got rows without labels. Give labelled "
                "rows (--label-column), or calibrate all classes together.",
                1,
            )
        each = {label: held.calibration(label, guarantee, delta) for label in labels}
        own = {label: one for label, one in each.items() if one.n >= pooled_below}
        classes = torch.tensor(list(own), dtype=torch.int64)
        return cls(by, classes, tuple(own.values()), held.calibration(None, guarantee, delta))

    @property
    def n(self) -> int:
        """Number of held-out scores."""
        return self.whole.n

    def p_value(self, scores: Any, label: Any = None) -> Float[Tensor, "row"]:
        """Return each score's p-value within its row's class."""
        values = torch.as_tensor(scores, dtype=torch.float64).flatten()
        p = self.whole.p_value(values)
        for calibration, rows in self._rows(label, len(values)):
            p[rows] = calibration.p_value(values[rows])
        return p

    def threshold(self, alpha: float, label: int | None = None) -> float:
        """Return a class's threshold, or the overall threshold for None and unseen classes."""
        at = torch.nonzero(self.labels == (-1 if label is None else label)).flatten().tolist()
        return (self.each[at[0]] if at else self.whole).threshold(alpha)

    def thresholds(self, alpha: float, label: Any, n: int) -> Float[Tensor, "row"]:
        """Return the threshold of each of ``n`` rows."""
        limits = torch.full((n,), self.whole.threshold(alpha), dtype=torch.float64)
        for calibration, rows in self._rows(label, n):
            limits[rows] = calibration.threshold(alpha)
        return limits

    def rate_interval(self, alpha: float, confidence: float = 0.9) -> tuple[float, float]:
        """Return an interval for the true false-alarm rate over all classes."""
        return self.whole.rate_interval(alpha, confidence)

    def _rows(self, label: Any, n: int) -> list[tuple[SampledCalibration, Tensor]]:
        """Return the calibration of each class that has rows, and the indices of its rows."""
        of_row = torch.full((n,), -1) if label is None else torch.as_tensor(label).cpu().long()
        pairs = zip(self.labels.tolist(), self.each, strict=True)
        return [(one, rows) for k, one in pairs if bool((rows := of_row == k).any())]
