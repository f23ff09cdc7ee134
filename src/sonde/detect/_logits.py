"""Base of detectors that score each row from its logits alone, without fitting."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width

CHUNK_ENTRIES = 1 << 21


class LogitDetector(Detector):
    """A detector without fitted parameters: a fixed function of each row's logits.

    Attributes
    ----------
    reach : (float, float)
        Smallest and largest score.
    unit : str
        Unit of the scores.
    """

    reach: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    unit: ClassVar[str] = ""

    @abstractmethod
    def scores(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return the score of each row; finite for finite logits in at least float32."""

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the mean score."""
        return {"mean": LogitScoreSum(self)}

    def result(self, mean: "LogitScoreSumState") -> "LogitScorer":
        """Return the scorer with the number of classes."""
        return LogitScorer(
            value=mean.sum / mean.n,
            n=mean.n,
            unit=self.unit,
            range=self.reach,
            conventions={"value": "mean score of the fitted rows"},
            detector=self,
            n_classes=mean.n_classes,
        )


@dataclass(frozen=True)
class LogitScoreSumState(State):
    """Sum of the scores of ``n`` rows of ``n_classes`` logits."""

    n: int
    sum: Float[Tensor, ""]
    n_classes: int


@final
@dataclass(frozen=True)
class LogitScoreSum(Statistic[LogitScoreSumState]):
    """Mean score of the fitted rows, independent of how data are split.

    Parameters
    ----------
    detector : LogitDetector
    column : str, default="logits"
        Name of the column that holds the logits.
    """

    detector: LogitDetector
    column: str = "logits"

    def needs(self) -> tuple[str, ...]:
        """Return the name of the logits column."""
        return (self.column,)

    def observe(self, logits: Float[Tensor, "row class"]) -> LogitScoreSumState:
        """Return the sum over a batch."""
        return LogitScoreSumState(len(logits), self._scores(logits).sum(), logits.shape[1])

    def merge(self, a: LogitScoreSumState, b: LogitScoreSumState) -> LogitScoreSumState:
        """Return the sum over both states."""
        return LogitScoreSumState(a.n + b.n, a.sum + b.sum, a.n_classes)

    def influence(
        self,
        state: LogitScoreSumState,
        gradient: LogitScoreSumState,
        logits: Float[Tensor, "row class"],
    ) -> Float[Tensor, "row"]:
        """Return the gradient times each row's score minus the mean."""
        return (self._scores(logits) - state.sum / state.n) * gradient.sum

    def _scores(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return scores in float64, so that a sum does not depend on batches."""
        parts = logits.split(max(1, CHUNK_ENTRIES // logits.shape[1]))
        return torch.cat([self.detector.scores(part.double()).double() for part in parts])


@final
@dataclass(frozen=True, kw_only=True)
class LogitScorer(Scorer):
    """The detector's function of the logits; ``value`` is its mean over the fitted rows."""

    detector: LogitDetector
    n_classes: int

    def score(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return the score of each row."""
        check_fitted_width(type(self.detector).__name__, logits, self.n_classes, "classes")
        return infinite_where_nonfinite(
            self.detector.scores(at_least_single(logits)), logits=logits
        )


@dataclass(frozen=True)
class Rivals:
    """Gaps between the largest logit of each row and its other logits.

    Softmax scores are computed from these gaps without the subtraction ``1 - p``, so a confident
    row keeps all of its digits.

    Parameters
    ----------
    gap : Float[Tensor, "row rival"]
        Largest logit less each of the others, in no particular order.
    log_odds : Float[Tensor, "row"]
        ``ln((1 - p) / p)`` with ``p`` the largest probability; ``-inf`` for a single class.
    """

    gap: Float[Tensor, "row rival"]
    log_odds: Float[Tensor, "row"]

    @classmethod
    def of(cls, logits: Float[Tensor, "row class"]) -> "Rivals":
        """Return the rivals of the first largest logit of each row."""
        largest, winner = logits.max(dim=1, keepdim=True)
        others = logits.scatter(1, winner, logits[:, :1])[:, 1:]
        gap = (largest - others).clamp(max=torch.finfo(logits.dtype).max)
        return cls(gap, torch.logsumexp(-gap, dim=1))

    @property
    def surprise(self) -> Float[Tensor, "row"]:
        """``-ln p`` of the largest probability."""
        return softplus(self.log_odds)


def at_least_single(logits: Float[Tensor, "row class"]) -> Float[Tensor, "row class"]:
    """Return logits in at least float32."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
