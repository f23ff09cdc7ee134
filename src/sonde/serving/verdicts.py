"""One p-value, verdict and most extreme site for each input, as in ``sonde score``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sonde.alarms.fusion import FusedScore, Surprises
from sonde.core.errors import CalibrationError, StateError
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.batches import ScoredRows
from sonde.run.scoring.by_input import default_rule, held_scores, least_p
from sonde.run.scoring.fuse import COMBINED, fused_of


@dataclass(frozen=True)
class Verdict:
    """The detectors' verdict on one input.

    Parameters
    ----------
    p : float or None
        Over all detectors and sites together; None if no valid p-value is known.
    alarm : bool or None
        Whether ``p`` is at most the stated rate; None if that can never happen.
    each : dict of (method, site) to (score, p)
        Of a detector that scores several rows of an input the score and p of the loudest row.
    loudest : (method, site) or None
        The detector and site with the smallest p-value.
    """

    p: float | None
    alarm: bool | None
    each: dict[Key, tuple[float, float | None]]
    loudest: Key | None


class Verdicts:
    """The rule that combines all detectors and sites into one verdict, prepared once.

    Parameters
    ----------
    fitted : Fitted
    alpha : float
        False-alarm rate of the verdict.

    Attributes
    ----------
    rule : str or None
        Of several detectors and sites; None for a single one.
    lowest : float
        The least p-value that can occur.
    """

    def __init__(self, fitted: Fitted, alpha: float) -> None:
        self.alpha, self.keys = alpha, [*fitted.scorers]
        self.held = {key: held_scores(fitted, key) for key in self.keys}
        self._surprises = {
            key: Surprises((held,)) for key, held in self.held.items() if held is not None
        }
        self.rule: Any = None
        self._fused: FusedScore | None = None
        self.lowest = least_p(fitted, self.keys)
        if len(self.keys) > 1 and None not in self.held.values():
            self.rule = default_rule(fitted, self.keys, alpha)
            try:
                self.lowest = least_p(fitted, self.keys, self.rule)
                if self.rule not in COMBINED:
                    self._fused = fused_of(fitted, self.keys, self.rule)
            except (StateError, CalibrationError):
                self.rule, self.lowest = None, 1.0

    def of(self, scored: Mapping[Key, ScoredRows], n: int) -> list[Verdict]:
        """Return the verdict of each of ``n`` inputs."""
        lines: list[dict[Key, Any]] = [{} for _ in range(n)]
        for key in self.keys:
            one = scored[key]
            rows = zip(one.example.tolist(), one.score.tolist(), one.p, strict=True)
            for i, score, p in rows:
                line = (p, -score)
                if key not in lines[i] or _rank(line) < _rank(lines[i][key]):
                    lines[i][key] = line
        is_single = all(len(scored[key].p) == n for key in self.keys) and all(
            len(per_key) == len(self.keys) for per_key in lines
        )
        together = self._together(lines) if is_single else [None] * n
        return [self._verdict(per_key, p) for per_key, p in zip(lines, together, strict=True)]

    def _together(self, lines: Sequence[Mapping[Key, Any]]) -> Sequence[float | None]:
        """Return each input's p-value over all detectors, from one line of each detector."""
        p_values = [[line[key][0] for key in self.keys] for line in lines]
        if any(None in each for each in p_values):
            return [None] * len(lines)
        if len(self.keys) == 1:
            return [each[0] for each in p_values]
        if self._fused is not None:
            scores = [[-line[key][1] for key in self.keys] for line in lines]
            return self._fused.p_value(torch.tensor(scores, dtype=torch.float64)).tolist()
        if self.rule is None:
            return [None] * len(lines)
        return COMBINED[self.rule](torch.tensor(p_values, dtype=torch.float64)).tolist()

    def _verdict(self, lines: Mapping[Key, Any], p: float | None) -> Verdict:
        is_known = p is not None and self.lowest <= self.alpha
        each = {key: (-height, own) for key, (own, height) in lines.items()}
        alarm = p <= self.alpha if is_known and p is not None else None
        return Verdict(p, alarm, each, self._loudest(each))

    def _loudest(self, each: Mapping[Key, tuple[float, float | None]]) -> Key | None:
        least = min((p for _, p in each.values() if p is not None), default=None)
        if least is None:
            return None
        loud = [key for key, (_, p) in each.items() if p == least]
        return loud[0] if len(loud) == 1 else max(loud, key=lambda k: self._far(k, each[k][0]))

    def _far(self, key: Key, score: float) -> float:
        """Return how far a score is above the calibration scores; breaks ties of p-values."""
        if key not in self._surprises:
            return score
        return float(self._surprises[key].of(torch.tensor([[score]], dtype=torch.float64)))


def _rank(line: tuple[float | None, float]) -> tuple[float, float]:
    p, height = line
    return (math.inf if p is None else p, height)
