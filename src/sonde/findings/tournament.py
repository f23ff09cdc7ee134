"""The main cause of a scan: the smallest tried change that corrects about the most.

A finding is a candidate if its change was made and rows held out from the choice got better, unless
a finding that was not tried explains it. A head or numbers that were fitted to the answers mend
part of whatever is wrong before them: they are never the cause. Candidates compete on the rows
that all of them judged.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sonde.findings.rule import Check, Finding
from sonde.findings.trial import LEVEL, SCOPES, Trial, chance_of_gain

FEWEST: Final = 12
"""Common rows that a comparison of two trials takes."""
CLOSE: Final = 0.9
"""Fraction of the largest gain of a loss from which the smaller change is preferred."""
NEARLY, TIMES = 0.75, {"accuracy": 1.5, "error": 1.25}
LEFT: Final = {"accuracy": 0.02, "error": 0.005}
"""Gains of answers are close from this fraction on, if few more answers stay wrong."""
ENOUGH: Final = 2 / 3
"""Fraction of the loss relative to a probe of the states that a cause must recover."""
LESS: Final = 0.9
"""Log loss relative to that of a smaller change from which the larger change is preferred."""
COVERED: Final = 0.25
"""Largest fraction of a trial's gain that its cause may leave unexplained."""


def name_cause(settled: Mapping[str, Check], within: float | None = None) -> dict[str, Check]:
    """Return the checks with the cause marked, and covered rivals explained by it.

    Parameters
    ----------
    settled : mapping of str to Check
        By code, explained as the table of causes says.
    within : float, optional
        Accuracy that the model's states allow, by a probe of the last layer. A change that mends
        less than two thirds of what is lost against it is no cause.
    """
    found = {code: check.finding for code, check in settled.items() if check.finding is not None}
    tried = {code: f for code, f in found.items() if _is_tried(f)}
    free = {code: f for code, f in tried.items() if _is_free(f, found)}
    chosen = _chosen({code: f for code, f in free.items() if _can_be_cause(f.trial, within)})
    changed = dict(settled)
    for code, finding in free.items():
        if code == chosen:
            made = replace(finding, because_of=None, is_cause=True)
        elif chosen is not None and _is_covered(finding.trial, tried[chosen].trial):
            made = replace(finding, because_of=chosen)
        else:
            continue
        changed[code] = replace(settled[code], finding=made)
    return _without_circles(changed)


def _is_tried(finding: Finding) -> bool:
    return finding.level != "note" and finding.trial is not None and finding.trial.holds


def _is_free(finding: Finding, found: Mapping[str, Finding]) -> bool:
    """Return whether every finding that explains this finding was tried as well."""
    seen: set[str] = set()
    while finding.because_of is not None and finding.because_of not in seen:
        seen.add(finding.because_of)
        if finding.because_of not in found:
            return False
        finding = found[finding.because_of]
        if not _is_tried(finding):
            return False
    return True


def _can_be_cause(trial: Trial | None, within: float | None) -> bool:
    """Return whether a change undoes a fault and restores most of the possible accuracy."""
    if trial is None or trial.scope == "head":
        return False
    if within is None or trial.measure != "accuracy":
        return True
    return trial.gain >= ENOUGH * (within - float(trial.before.mean()))


def _chosen(free: Mapping[str, Finding]) -> str | None:
    """Return the code of the smallest change among those with about the largest gain."""
    trials = {code: f.trial for code, f in free.items() if f.trial is not None}
    for measures in (("accuracy", "error", "loss"), ("states",), ("probabilities",)):
        kept = {code: trial for code, trial in trials.items() if trial.measure in measures}
        if kept:
            return _best(kept)
    return None


def _best(trials: Mapping[str, Trial]) -> str:
    gains = _gains(trials)
    best = max(gains, key=lambda code: gains[code])
    tied = [code for code in trials if _is_close(gains[code], gains[best], trials[best])]
    least = min(tied, key=lambda code: (SCOPES.index(trials[code].scope), -gains[code], code))
    surer = {code: _nats_of(trials[code], trials[least]) for code in tied if code != least}
    kept = {code: nats for code, nats in surer.items() if nats is not None}
    return min(kept, key=lambda code: kept[code]) if kept else least


def _nats_of(trial: Trial, rival: Trial) -> float | None:
    """Return the log loss after a trial if it is below a rival's on common rows, else None.

    A constant on a logit corrects many answers of a model whose inputs are in another form, but it
    leaves them unsure; the true form gives the loss of training back.
    """
    if trial.nats is None or rival.nats is None:
        return None
    order = sorted(set(trial.rows.tolist()) & set(rival.rows.tolist()))
    if len(order) < FEWEST:
        return None
    own, other = (_picked(t, t.nats, order) for t in (trial, rival) if t.nats is not None)
    group = None if trial.group is None else _picked(trial, trial.group, order)
    p = chance_of_gain(-other, -own, group)
    if float(own.mean()) > LESS * float(other.mean()) or p >= LEVEL:
        return None
    return float(own.mean())


def _gains(trials: Mapping[str, Trial]) -> dict[str, float]:
    """Return each trial's mean gain on common rows, or on its own rows if these are too few."""
    common = reduce(set.intersection, (set(t.rows.tolist()) for t in trials.values()))
    if len(common) < FEWEST:
        return {c: float((_bounded(t, t.after) - _bounded(t, t.before)).mean())
                for c, t in trials.items()}  # fmt: skip
    order = sorted(common)
    return {code: float((_at(t, t.after, order) - _at(t, t.before, order)).mean())
            for code, t in trials.items()}  # fmt: skip


def _bounded(trial: Trial, scores: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """Return scores with each error limited to that of predicting the mean."""
    return scores.double().clamp(min=0) if trial.measure == "error" else scores.double()


def _is_close(gain: float, most: float, best: Trial) -> bool:
    """Return whether a gain is close to the best trial's and leaves few more errors."""
    if best.measure not in TIMES:
        return gain >= CLOSE * most
    left = 1 - float(_bounded(best, best.after).mean())
    allowed = TIMES[best.measure] * left + LEFT[best.measure]
    return gain >= NEARLY * most and left + most - gain <= allowed


def _paired(a: Trial, b: Trial) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]] | None:
    """Return the scores after both changes on their common rows; None if too few."""
    order = sorted(set(a.rows.tolist()) & set(b.rows.tolist()))
    if len(order) < FEWEST or a.measure != b.measure:
        return None
    return _at(a, a.after, order), _at(b, b.after, order)


def _at(trial: Trial, scores: Float[Tensor, "row"], order: list[int]) -> Float[Tensor, "common"]:
    return _picked(trial, _bounded(trial, scores), order)


def _picked(trial: Trial, values: Shaped[Tensor, "row"], order: list[int]) -> Tensor:
    where = {example: i for i, example in enumerate(trial.rows.tolist())}
    return values[torch.tensor([where[example] for example in order])]


def _is_covered(trial: Trial | None, cause: Trial | None) -> bool:
    """Return whether a trial adds little to the gain of the cause."""
    if trial is None or cause is None:
        return False
    pair = _paired(trial, cause)
    if pair is None:
        return trial.measure == "probabilities"
    more = float((pair[0] - pair[1]).clamp(min=0).mean())
    gain = float((_bounded(trial, trial.after) - _bounded(trial, trial.before)).mean())
    return more <= COVERED * max(gain, 0.0)


def _without_circles(settled: dict[str, Check]) -> dict[str, Check]:
    """Return the checks without circular explanations."""
    for code, check in settled.items():
        seen, at = {code}, check
        while at.finding is not None and at.finding.because_of in settled:
            after = at.finding.because_of
            if after in seen:
                assert check.finding is not None
                settled[code] = replace(check, finding=replace(check.finding, because_of=None))
                break
            seen.add(after)
            at = settled[after]
    return settled
