"""Alarms at a fixed rate: from the most sensitive detector, and from the sum of all scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.stats import betabinom
from torch import Tensor

from sonde.alarms import surprise
from sonde.core.calibration import Calibration
from sonde.findings.evidence.shared_rows import EXAMPLES, one_per_group
from sonde.stats.auroc import auroc
from sonde.stats.intervals import clopper_pearson

BINS = 40
NAMED = 50
CHOOSING = 5


@dataclass(frozen=True, eq=False)
class Alarm:
    """Alarms on OTHER, raised by one score or by the sum of several scores.

    Parameters
    ----------
    names : tuple of (str, str)
        Method and site of each score.
    calibration : Calibration
        Calibration on the summed scores of held-out groups of DATA.
    scores : Float[Tensor, "row"]
        Summed scores of OTHER's rows.
    one : Int[Tensor, "group"]
        One row of each of OTHER's groups.
    counted : Int[Tensor, "counted"]
        Rows of ``one`` whose alarms are counted: all, or those that did not choose the detector.
    alpha : float
    """

    names: tuple[tuple[str, str], ...]
    calibration: Calibration
    scores: Float[Tensor, "row"]
    one: Int[Tensor, "group"]
    counted: Int[Tensor, "counted"]
    alpha: float

    @property
    def possible(self) -> bool:
        """Whether there are enough held-out groups for an alarm at this rate."""
        return self.calibration.alarms_allowed(self.alpha) > 0

    @property
    def n(self) -> int:
        """Number of groups of OTHER that were tested."""
        return len(self.counted)

    @property
    def n_alarms(self) -> int:
        """Number of tested groups of OTHER above the threshold."""
        return int((self.scores[self.counted] > self.calibration.threshold(self.alpha)).sum())

    @property
    def rate(self) -> float:
        """Fraction of the tested groups above the threshold."""
        return self.n_alarms / max(self.n, 1)

    @property
    def p(self) -> float:
        """Probability of at least as many alarms on rows like DATA."""
        return self.chance(self.n_alarms)

    def chance(self, n_alarms: int) -> float:
        """Return the probability of at least ``n_alarms`` alarms on rows like DATA.

        The threshold is estimated: the share of such rows beyond the ``l``-th largest of ``n``
        held-out scores follows ``Beta(l, n + 1 - l)``, so their number is beta-binomial.
        """
        rank = self.calibration.alarms_allowed(self.alpha)
        return float(betabinom.sf(n_alarms - 1, self.n, rank, self.calibration.n + 1 - rank))

    def worst(self, at_most: int) -> list[int]:
        """Return the rows of OTHER with the highest scores."""
        return torch.argsort(self.scores, descending=True, stable=True)[:at_most].tolist()

    @property
    def _threshold(self) -> float | None:
        return self.calibration.threshold(self.alpha) if self.possible else None

    def facts(self) -> dict[str, Any]:
        """Return the entry ``alarm`` or ``lead`` of the report."""
        low, high = clopper_pearson(self.n_alarms, self.n) if self.possible else (None, None)
        return {
            "detector": ", ".join(dict.fromkeys(method for method, _ in self.names)),
            "sites": list(dict.fromkeys(key for _, key in self.names)),
            "alpha": self.alpha,
            "rate": self.rate if self.possible else None,
            "low": low,
            "high": high,
            "threshold": _finite(self._threshold),
            "n_cal": self.calibration.n,
            "n": self.n,
            "p": self.p if self.possible else None,
            "guarantee": "marginal",
        }

    def section(self, ids: list[str], order: list[int]) -> dict[str, Any]:
        """Return the entries ``scores`` and ``rows`` of the report."""
        p = self.calibration.p_value(self.scores)
        return {
            "scores": self._histograms(self._threshold),
            "rows": [
                {
                    "id": str(ids[i]),
                    EXAMPLES: [order[i]],
                    "score": _finite(float(self.scores[i])),
                    "p": float(p[i]),
                }
                for i in self.worst(NAMED)
            ],
        }

    def _histograms(self, threshold: float | None) -> dict[str, Any] | None:
        """Return histograms of both data sets; larger values count in the last bin."""
        own, theirs = self.calibration.scores, self.scores[self.one]
        finite = own[torch.isfinite(own)]
        if len(finite) < 2:
            return None
        low, high = float(finite.min()), float(finite.max())
        top = theirs[torch.isfinite(theirs)]
        reach = high + 0.5 * (high - low)
        high = max(high, min(reach, float(top.max()) if len(top) else high))
        low = min(low, float(top.min()) if len(top) else low)
        if not high > low:
            return None
        edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)

        def counts(values: Tensor) -> list[int]:
            bins = torch.bucketize(values, edges[1:-1], right=True)
            return torch.bincount(bins, minlength=BINS).tolist()

        return {
            "edges": edges.tolist(),
            "counts_data": counts(own),
            "counts_other": counts(theirs),
            "threshold": _finite(threshold),
        }


@dataclass(frozen=True, eq=False)
class Alarms:
    """Alarms of the most sensitive score, and of the sum of all scores.

    Parameters
    ----------
    total : Alarm
        All scores added up.
    lead : Alarm or None
        The score that sees most of OTHER, chosen on half of OTHER's groups and counted on the other
        half; None if there is a single score, or OTHER has too few groups to choose.
    """

    total: Alarm
    lead: Alarm | None

    @property
    def each(self) -> tuple[Alarm, ...]:
        """The alarms that are tested, the leading one first."""
        return (self.total,) if self.lead is None else (self.lead, self.total)

    @property
    def surest(self) -> Alarm:
        """The alarm with the smaller p-value; in a tie, the leading alarm."""
        return min(self.each, key=lambda a: a.p) if self.total.possible else self.total

    def corrected(self, p: float) -> float:
        """Return a p-value corrected for the number of alarms that were tested."""
        return min(1.0, len(self.each) * p)


def fuse(
    held: Mapping[tuple[str, str], Float[Tensor, "row"]],
    group: Int[Tensor, "row"],
    other: Mapping[tuple[str, str], Float[Tensor, "row2"]],
    other_group: Int[Tensor, "row2"],
    alpha: float,
) -> Alarms | str:
    """Return the alarms of the leading score and of the sum, or the reason for their absence.

    Each score becomes the negative logarithm of its p-value among a quarter of the held-out
    groups. The other held-out groups, one row of each, calibrate the scores and their sum. The
    alarm rate holds however sites depend on each other, because the sum itself is calibrated. The
    leading score is chosen on that quarter and on half of OTHER. It is calibrated and counted on
    the rest of both, so the choice among all scores does not raise its alarm rate.
    """
    part = torch.remainder(group, 4) == 0
    first = torch.nonzero(part).flatten()
    rest = torch.nonzero(~part).flatten()
    rest = rest[one_per_group(group[rest])]
    if len(first) == 0 or len(rest) == 0:
        return "too few held-out rows"
    one = one_per_group(other_group)
    own, theirs = {}, {}
    for name, scores in held.items():
        reference = scores[first].sort().values
        own[name], theirs[name] = surprise(scores, reference), surprise(other[name], reference)

    def alarm(names: tuple[tuple[str, str], ...], counted: Tensor) -> Alarm:
        calibration = Calibration.from_scores(_sum(own, names)[rest])
        return Alarm(names, calibration, _sum(theirs, names), one, counted, alpha)

    total, choosing = alarm(tuple(held), one), torch.remainder(other_group[one], 2) == 0
    if len(held) < 2 or bool(choosing.all()) or not bool(choosing.any()):
        return Alarms(total, None)
    usual = first[one_per_group(group[first])]
    sees = {n: _seen(own[n][usual], theirs[n][one[choosing]], alpha) for n in held}
    best = max(sees, key=lambda n: sees[n])
    return Alarms(total, alarm((best,), one[~choosing]))


def _sum(surprises: Mapping[tuple[str, str], Tensor], names: Sequence[tuple[str, str]]) -> Tensor:
    return torch.stack([surprises[name] for name in names]).sum(0)


def _seen(usual: Tensor, other: Tensor, alpha: float) -> tuple[float, float]:
    """Return the mean fraction of ``other`` above the highest scores of DATA, and the AUROC.

    The share is a partial area under the ROC curve, up to a few times ``alpha``: with so few
    scores, a single threshold is mostly luck.
    """
    limits = usual.sort(descending=True).values[: max(1, math.ceil(CHOOSING * alpha * len(usual)))]
    return float((other[:, None] > limits).double().mean()), auroc(usual, other).value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
