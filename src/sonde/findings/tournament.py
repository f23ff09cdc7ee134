"""The main cause of a scan: the smallest tried change that corrects about the most.

A finding is a candidate if its change was made and rows held out from the choice got better, unless
a finding that was not tried explains it. A head or numbers that were fitted to the answers mend
part of whatever is wrong before them: they are never the cause. One rule holds for every measure:
the change closes two thirds of the gap to the best known answers (to perfect ones, if none are
known), the answers are then better than the commonest label or the mean, and no other change gains
far more. Of changes that gain about as much, those come first after which the inputs of the batch
norms fit their running statistics. Candidates compete on the rows that all of them judged. A change
that closes less is part of the cause.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sonde.findings.catalogue import rule_classes
from sonde.findings.evidence.answers.best_probe import BestProbe
from sonde.findings.rule import SERIOUS, Check, Finding, Gap
from sonde.findings.trial import LEVEL, SCOPES, Trial, chance_of_gain, is_beyond

LIKE_CONSTANTS: Final = ("inputs", "some inputs", "part", "statistics")
"""Scopes of changes that can act as a constant on a logit."""
OF_INPUTS: Final = ("inputs", "some inputs")
"""Scopes of changes of inputs."""
FEWEST: Final = 12
"""Common rows that a comparison of two trials takes."""
CLOSE: Final = 0.9
"""Fraction of the largest gain of a loss from which the smaller change is preferred."""
NEARLY, TIMES = 0.75, {"accuracy": 1.5, "error": 1.25}
LEFT: Final = {"accuracy": 0.02, "error": 0.005}
"""Gains of answers are close from this fraction on, if few more answers stay wrong."""
ENOUGH: Final = 2 / 3
"""Fraction of the gap to the best known answers that a cause must close."""
NEARLY_ALL: Final = 0.9
"""The same for a constant on a logit or on numbers: it corrects some answers whatever is wrong."""
CLEAN: Final = 0.5
"""Least gain on rows without a visible fault of their own, relative to that on all rows."""
PART: Final = 0.2
"""Fraction of the gap from which a change is part of the cause."""
WORST: Final = 8.0
"""Largest error of one row, in variances of the targets beyond the first."""
LESS: Final = 0.9
"""Log loss relative to that of a smaller change from which the larger change is preferred."""
COVERED: Final = 0.25
"""Largest fraction of a trial's gain that its cause may leave unexplained."""


def name_cause(
    settled: Mapping[str, Check],
    known: BestProbe | None = None,
    constant: Trial | None = None,
) -> dict[str, Check]:
    """Return the checks with the cause marked, and covered rivals explained by it.

    If no change can be the cause, the change that closes most of the gap is marked as a part of it.

    Parameters
    ----------
    settled : mapping of str to Check
        By code, explained as the table of causes says.
    known : BestProbe, optional
        The best answers that are known to be possible.
    constant : Trial, optional
        Of the best constant on one logit. A change of inputs or parts that corrects no more, and
        leaves the answers as unsure, acts as such a constant: it undoes nothing. Constants that
        were fitted to numbers are among the findings.
    """
    raised = {code: check.finding for code, check in settled.items() if check.finding is not None}
    raised |= {code: replace(f, gap=_gap(f.trial, raised, known))
              for code, f in raised.items() if _is_tried(f)}  # fmt: skip
    tried = {code: f for code, f in raised.items() if _is_tried(f)}
    free = {code: f for code, f in tried.items() if _is_free(f, raised)}
    able = {c: f for c, f in free.items() if f.trial is not None and f.trial.scope != "head"
            and not f.trial.rival and _beats_constant(f.trial, known)}  # fmt: skip
    constants = [constant, *(f.trial for f in tried.values() if f.trial and f.trial.is_constant)]
    chosen = _chosen({c: f for c, f in able.items() if _can_be_cause(f, tried, settled)
                      and not any(_is_like(f.trial, k) for k in constants)})  # fmt: skip
    part = None if chosen is not None else _largest_part(able)
    changed = dict(settled)
    for code, finding in tried.items():
        named = finding
        if code == chosen:
            named = replace(finding, because_of=None, is_cause=True)
        elif code == part:
            named = replace(finding, because_of=None, is_part=True)
        elif code in free and chosen and _is_covered(finding.trial, tried[chosen].trial):
            named = replace(finding, because_of=chosen)
        changed[code] = replace(settled[code], finding=named)
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


def _gap(trial: Trial | None, found: Mapping[str, Finding], known: BestProbe | None) -> Gap | None:
    """Return the gap to the best known answers on a trial's rows, and how much of it closes.

    The best known answers are those of the best probe, or of another trial if these are better.
    """
    if trial is None or known is None or known.measure != trial.measure:
        return None
    rivals = [f.trial for f in found.values() if _is_tried(f) and f.trial is not None]
    best, where = known.on(trial.rows), known.where
    for rival in rivals:
        common = _common(rival, trial) if rival.measure == trial.measure else []
        if len(common) >= FEWEST and rival is not trial and rival.scope != "head":
            best = max(best, _mean(_picked(rival, rival.after, common), trial))
    before, after = _mean(trial.before, trial), _mean(trial.after, trial)
    before = max(before, 0.0) if trial.measure == "error" else before
    closed = 1.0 if best <= before else (after - before) / (best - before)
    return Gap(where, best, closed)


def _mean(scores: Float[Tensor, "row"], trial: Trial) -> float:
    """Return the mean score, one row's error limited so that it cannot decide alone."""
    scores = scores.double()
    return float((scores.clamp(min=-WORST) if trial.measure == "error" else scores).mean())


def _beats_constant(trial: Trial, known: BestProbe | None) -> bool:
    """Return whether the answers are better than the commonest label, the mean or frequencies."""
    if known is None or known.measure != trial.measure:
        return trial.measure != "error" or _mean(trial.after, trial) > 0
    return _mean(trial.after, trial) > known.constant


def _can_be_cause(
    finding: Finding, tried: Mapping[str, Finding], settled: Mapping[str, Check]
) -> bool:
    """Return whether a change closes enough of the gap, and no other change gains far more."""
    trial, gap = finding.trial, finding.gap
    if trial is None or trial.leaves_out or trial.rival:
        return False
    earlier = [code for code, cls in rule_classes().items() if cls.before_constants]
    if trial.is_constant and not all(_was_tried(settled.get(code)) for code in earlier):
        return False
    if gap is not None and gap.closed < (NEARLY_ALL if trial.is_constant else ENOUGH):
        return False
    if gap is None and trial.measure in TIMES and _closed_to_perfect(trial) < ENOUGH:
        return False
    if not _helps_clean_rows(trial, settled):
        return False
    for rival in (f.trial for f in tried.values() if f.trial is not None):
        if rival is trial or rival.measure != trial.measure or rival.scope == "head":
            continue
        if rival.leaves_out and not is_beyond(trial, rival):
            return False
        common = _common(trial, rival)
        gains = [float((_at(t, t.after, common) - _at(t, t.before, common)).mean())
                 for t in (trial, rival)] if len(common) >= FEWEST else [0.0, 0.0]  # fmt: skip
        if gains[0] < NEARLY * gains[1]:
            return False
    return True


def _helps_clean_rows(trial: Trial, settled: Mapping[str, Check]) -> bool:
    """Return whether a change helps the rows whose inputs have no visible fault as well.

    A change of a part makes up for some of what -999 in a column does to its rows. A change of
    inputs may leave the other rows as they are: it replaces these values.
    """
    codes = [code for code, cls in rule_classes().items() if cls.spoils_rows]
    raised = [check.finding for code in codes if (check := settled.get(code)) is not None]
    spoiled = {i for f in raised if f is not None and f.level in SERIOUS for i in f.examples}
    clean = [i for i in trial.rows.tolist() if i not in spoiled]
    if len(clean) == len(trial.rows) or len(clean) < FEWEST:
        return True
    gains = _at(trial, trial.after, clean) - _at(trial, trial.before, clean)
    whole = (_bounded(trial, trial.after) - _bounded(trial, trial.before)).mean()
    is_replacement = trial.scope in OF_INPUTS and not bool(gains.any())
    return is_replacement or float(gains.mean()) >= CLEAN * float(whole)


def _closed_to_perfect(trial: Trial) -> float:
    """Return the fraction of the gap to perfect answers that a change closes."""
    before, after = _mean(trial.before, trial), _mean(trial.after, trial)
    before = max(before, 0.0) if trial.measure == "error" else before
    return (after - before) / max(1 - before, 1e-12)


def _is_like(trial: Trial | None, constant: Trial | None) -> bool:
    """Return whether a constant on one logit, or on numbers, corrects about as many rows as surely.

    Numbers have no log loss: the constant must gain nine tenths of what the change gains. No
    constant makes the batch norms fit their inputs: a change that does so is not like one.
    """
    if trial is None or constant is None or not constant.holds or trial.misfit == "gone":
        return False
    if trial.measure != constant.measure or trial.scope not in LIKE_CONSTANTS:
        return False
    common = _common(trial, constant)
    if trial.is_constant or len(common) < FEWEST:
        return False
    most, gain = (float((_at(t, t.after, common) - _at(t, t.before, common)).mean())
                  for t in (trial, constant))  # fmt: skip
    if trial.measure == "error":
        return gain >= CLOSE * most
    is_unsure = trial.nats is not None and _nats_of(trial, constant) is None
    return is_unsure and _is_close(gain, most, trial)


def _was_tried(check: Check | None) -> bool:
    return check is not None and check.state in ("raised", "clear")


def _largest_part(free: Mapping[str, Finding]) -> str | None:
    """Return the code of the change that closes most of the gap, if it closes a fifth."""
    closed = {code: f.gap.closed for code, f in free.items() if f.gap is not None}
    best = max(closed, key=lambda code: (closed[code], code), default=None)
    return None if best is None or closed[best] < PART else best


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
    tied = [code for code in tied if trials[code].misfit != "left"] or tied
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
    order = _common(trial, rival)
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
    order = _common(a, b)
    if len(order) < FEWEST or a.measure != b.measure:
        return None
    return _at(a, a.after, order), _at(b, b.after, order)


def _common(a: Trial, b: Trial) -> list[int]:
    """Return the examples that both trials judged."""
    return sorted(set(a.rows.tolist()) & set(b.rows.tolist()))


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
