"""One p-value, verdict and loudest site for each input, as ``sonde score`` gives them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sonde.alarms.fusion import FusedScore, surprise
from sonde.core.errors import CalibrationError, StateError
from sonde.run.bundles.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.batches import ScoredRows
from sonde.run.scoring.by_input import default_rule, held_scores, least_p
from sonde.run.scoring.fuse import COMBINED, fused_of


@dataclass(frozen=True)
class Verdict:
    """What the detectors say of one input.

    Parameters
    ----------
    p : float or None
        Over all detectors and sites together; None if no valid p-value is known.
    alarm : bool or None
        Whether ``p`` is at most the stated rate; None if that can never happen.
    each : dict of (method, site) to (score, p)
        Of a detector that scores several rows of an input the score and p of the loudest row.
    loudest : (method, site) or None
        The detector and site with the smallest p-value of its own.
    """

    p: float | None
    alarm: bool | None
    each: dict[Key, tuple[float, float | None]]
    loudest: Key | None


class Verdicts:
    """The rule that makes one verdict of all detectors and sites, prepared once.

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
        lines = [self._lines(scored, i) for i in range(n)]
        together = self._together(scored, n)
        return [self._verdict(mine, p) for mine, p in zip(lines, together, strict=True)]

    def _lines(self, scored: Mapping[Key, ScoredRows], i: int) -> dict[Key, Any]:
        found: dict[Key, Any] = {}
        for key in self.keys:
            one = scored[key]
            rows = torch.nonzero(one.example == i).flatten().tolist()
            if rows:
                found[key] = min(((one.p[r], -float(one.score[r])) for r in rows), key=_rank)
        return found

    def _together(self, scored: Mapping[Key, ScoredRows], n: int) -> list[float | None]:
        """Return the p-value over all detectors of each input, None for several rows of one."""
        parts = [scored[key] for key in self.keys]
        if any(len(one.p) != n or None in one.p for one in parts):
            return [None] * n
        order = [one.example.argsort() for one in parts]
        known = [[one.p[i] for i in at] for one, at in zip(parts, order, strict=True)]
        p = torch.tensor(known, dtype=torch.float64).T
        if len(self.keys) == 1:
            return p[:, 0].tolist()
        if self._fused is not None:
            scores = torch.stack([one.score[at] for one, at in zip(parts, order, strict=True)], 1)
            return self._fused.p_value(scores).tolist()
        return [None] * n if self.rule is None else COMBINED[self.rule](p).tolist()

    def _verdict(self, lines: Mapping[Key, Any], p: float | None) -> Verdict:
        known = p is not None and self.lowest <= self.alpha
        each = {key: (-height, own) for key, (own, height) in lines.items()}
        alarm = p <= self.alpha if known and p is not None else None
        return Verdict(p, alarm, each, self._loudest(each))

    def _loudest(self, each: Mapping[Key, tuple[float, float | None]]) -> Key | None:
        ranked = {
            key: (p, -self._far(key, score)) for key, (score, p) in each.items() if p is not None
        }
        return min(ranked, key=lambda key: ranked[key], default=None)

    def _far(self, key: Key, score: float) -> float:
        held: Tensor | None = self.held[key]
        if held is None:
            return score
        return float(surprise(torch.tensor([score], dtype=torch.float64), held)[0])


def _rank(line: tuple[float | None, float]) -> tuple[float, float]:
    p, height = line
    return (math.inf if p is None else p, height)
