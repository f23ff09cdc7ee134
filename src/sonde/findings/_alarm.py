"""Scores of several detectors and sites made one, then calibrated: alarms at a stated rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.stats import betabinom
from torch import Tensor

from sonde.alarms import surprise
from sonde.core.calibration import Calibration
from sonde.findings._shared import EXAMPLES, one_per_group
from sonde.stats.intervals import clopper_pearson

BINS = 40
NAMED = 50


@dataclass(frozen=True, eq=False)
class Alarm:
    """Alarms on OTHER of one fused score.

    Parameters
    ----------
    names : tuple of (str, str)
        Method and site of each score that was fused.
    calibration : Calibration
        Fused scores of held-out groups of DATA.
    scores : Float[Tensor, "row"]
        Fused scores of OTHER's rows.
    one : Int[Tensor, "group"]
        One row of each of OTHER's groups.
    alpha : float
    """

    names: tuple[tuple[str, str], ...]
    calibration: Calibration
    scores: Float[Tensor, "row"]
    one: Int[Tensor, "group"]
    alpha: float

    @property
    def possible(self) -> bool:
        """Whether there are enough held-out groups for an alarm at this rate."""
        return self.calibration.alarms_allowed(self.alpha) > 0

    @property
    def n(self) -> int:
        """Groups of OTHER."""
        return len(self.one)

    @property
    def n_alarms(self) -> int:
        """Groups of OTHER beyond the threshold."""
        return int((self.scores[self.one] > self.calibration.threshold(self.alpha)).sum())

    @property
    def rate(self) -> float:
        """Share of OTHER's groups beyond the threshold."""
        return self.n_alarms / max(self.n, 1)

    @property
    def p(self) -> float:
        """Chance of as many alarms or more on rows like DATA, the threshold being estimated.

        The share of such rows beyond the ``l``-th largest of ``n`` held-out scores follows
        ``Beta(l, n + 1 - l)``, so their number is beta-binomial.
        """
        rank = self.calibration.alarms_allowed(self.alpha)
        return float(betabinom.sf(self.n_alarms - 1, self.n, rank, self.calibration.n + 1 - rank))

    def section(self, ids: list[str], order: list[int], sites: list[str]) -> dict[str, Any]:
        """Return the report's keys ``alarm``, ``scores`` and ``rows``."""
        p = self.calibration.p_value(self.scores)
        worst = torch.argsort(self.scores, descending=True, stable=True)[:NAMED].tolist()
        threshold = self.calibration.threshold(self.alpha) if self.possible else None
        low, high = clopper_pearson(self.n_alarms, self.n) if self.possible else (None, None)
        methods = ", ".join(dict.fromkeys(method for method, _ in self.names))
        return {
            "alarm": {
                "detector": methods,
                "sites": sites,
                "alpha": self.alpha,
                "rate": self.rate if self.possible else None,
                "low": low,
                "high": high,
                "threshold": _finite(threshold),
                "n_cal": self.calibration.n,
                "n": self.n,
                "p": self.p if self.possible else None,
                "guarantee": "marginal",
            },
            "scores": self._histograms(threshold),
            "rows": [
                {
                    "id": str(ids[i]),
                    EXAMPLES: [order[i]],
                    "score": _finite(float(self.scores[i])),
                    "p": float(p[i]),
                }
                for i in worst
            ],
        }

    def _histograms(self, threshold: float | None) -> dict[str, Any] | None:
        """Return counts of both sides; what lies above the last edge is counted in the last bin."""
        mine, theirs = self.calibration.scores, self.scores[self.one]
        finite = mine[torch.isfinite(mine)]
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
            "counts_data": counts(mine),
            "counts_other": counts(theirs),
            "threshold": _finite(threshold),
        }


def fuse(
    held: Mapping[tuple[str, str], Float[Tensor, "row"]],
    group: Int[Tensor, "row"],
    other: Mapping[tuple[str, str], Float[Tensor, "row2"]],
    other_group: Int[Tensor, "row2"],
    alpha: float,
) -> Alarm | str:
    """Return the alarms of the fused score, or why there can be none.

    A quarter of the held-out groups turns each score into a p-value, and the negative logarithms
    are added up; the sum on the other groups, one row of each, is the calibration. Whatever the
    dependence between sites, the promise holds, because the sum itself is calibrated.
    """
    part = torch.remainder(group, 4) == 0
    first = torch.nonzero(part).flatten()
    rest = torch.nonzero(~part).flatten()
    rest = rest[one_per_group(group[rest])]
    if len(first) == 0 or len(rest) == 0:
        return "too few rows were held out"
    total = torch.zeros(len(group), dtype=torch.float64)
    total_other = torch.zeros(len(other_group), dtype=torch.float64)
    for name, scores in held.items():
        reference = scores[first].sort().values
        total += surprise(scores, reference)
        total_other += surprise(other[name], reference)
    calibration = Calibration.from_scores(total[rest])
    return Alarm(tuple(held), calibration, total_other, one_per_group(other_group), alpha)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
