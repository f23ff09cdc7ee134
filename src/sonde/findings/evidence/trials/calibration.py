"""Confidence of a classifier against its accuracy, and the temperature that corrects it."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.engine.errorbars import group_error
from sonde.findings.evidence.answers.answers import answer_columns, class_answers
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.evidence.trials.part_changes import grid
from sonde.findings.evidence.trials.tempered_loss import as_logits
from sonde.findings.trial import Trial, chooses
from sonde.metrics import expected_calibration_error

LEAST: Final = 100
TEMPERATURES: Final = (0.02, 50.0, 61)


@dataclass(frozen=True)
class Sureness:
    """Calibration of a classifier on the sampled rows.

    Parameters
    ----------
    sure, right : float
        Mean probability of the answers, and share of right ones.
    se : float
        Standard error of their difference over groups.
    error : float
        Expected calibration error over ten bins of equal size.
    temperature : float
        Divides the logits; chosen on half of the groups.
    given, mended : float
        Error on the other half without and with that temperature.
    fall, fall_se : float
        Share by which the temperature lowers the loss of the other half, and its standard error
        over groups.
    n : int
    trial : Trial or None
        Loss of the other half with that temperature, which leaves all answers as they are.
    wrong : tuple of (int, float)
        Examples with a wrong answer, by planned order, and its probability; the surest first.
    """

    sure: float
    right: float
    se: float
    error: float
    temperature: float
    given: float
    mended: float
    fall: float
    fall_se: float
    n: int
    trial: Trial | None = None
    wrong: tuple[tuple[int, float], ...] = ()


@once
def sureness(evidence: Evidence) -> Sureness | str:
    """Return the calibration of a classifier's answers, or the reason for its absence."""
    answers, columns = class_answers(evidence), answer_columns(evidence)
    if isinstance(answers, str) or isinstance(columns, str):
        return str(answers)
    is_known = answers.truth < answers.n_classes
    p, truth, group = (
        answers.probability[is_known],
        answers.truth[is_known],
        answers.group[is_known],
    )
    if len(p) < LEAST:
        return f"needs {LEAST} rows with a label, {len(p)} present"
    sure, answer = p.max(1)
    right = answer == truth
    gap = sure - right.double()
    half = chooses(group)
    if not bool(half.any()) or bool(half.all()):
        return "needs rows from two groups"
    # logarithms of probabilities end at the smallest one, which hides large temperatures
    logits = as_logits(columns[0][answers.where[is_known]])
    temperature = best_temperature(logits[half], truth[half])
    mended = (logits[~half] / temperature).softmax(1).amax(1)
    before, after = (_losses(logits[~half] / t, truth[~half]) for t in (1.0, temperature))
    order = shared_rows(evidence).order
    trial = None
    if order is not None:
        rows = order[answers.where[is_known]][~half]
        words = f"the logits divided by {temperature:.3g}"
        trial = Trial(words, "answers", "probabilities", rows, -before, -after, group=group[~half])
    mean, rest = before.mean().clamp(min=1e-9), group[~half]
    fall = float((before - after).mean() / mean)
    # a ratio of two means: few rows with huge losses move both
    off = (before - after - fall * before) / mean
    return Sureness(
        sure=float(sure.mean()),
        right=float(right.double().mean()),
        se=group_error(gap / len(gap), group, len(torch.unique(group))),
        error=_error(sure, right),
        temperature=temperature,
        given=_error(sure[~half], right[~half]),
        mended=_error(mended, right[~half]),
        fall=fall,
        fall_se=group_error(off / len(off), rest, len(torch.unique(rest))),
        n=len(p),
        trial=trial,
        wrong=_surest(order[answers.where[is_known]], sure, ~right) if order is not None else (),
    )


def _surest(
    order: Int[Tensor, "row"], sure: Float[Tensor, "row"], wrong: Bool[Tensor, "row"]
) -> tuple[tuple[int, float], ...]:
    """Return the wrong examples with the probability of their answers, the surest first."""
    ranked = torch.argsort(sure[wrong], descending=True, stable=True)
    pairs = zip(order[wrong][ranked].tolist(), sure[wrong][ranked].tolist(), strict=True)
    return tuple(pairs)


def best_temperature(logits: Float[Tensor, "row class"], truth: Int[Tensor, "row"]) -> float:
    """Return the temperature of a grid with the least mean loss."""
    return min(grid(*TEMPERATURES), key=lambda t: float(_losses(logits / t, truth).mean()))


def _losses(logits: Float[Tensor, "row class"], truth: Int[Tensor, "row"]) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, truth, reduction="none")


def _error(sure: Float[Tensor, "row"], right: Bool[Tensor, "row"]) -> float:
    calibration_error = expected_calibration_error(
        sure.clamp(max=1.0), right.double(), bins=10, binning="mass", resamples=2
    )
    return float(calibration_error.value)


def is_off(
    found: Sureness, over: float = 0.05, under: float = 0.1, fall: float = 0.3, errors: float = 3.0
) -> bool:
    """Return whether a classifier is clearly overconfident or underconfident."""
    gap, least = abs(found.sure - found.right), over if found.sure > found.right else under
    off = gap >= least and gap >= errors * found.se and math.isfinite(found.se)
    least = max(fall, errors * found.fall_se) if math.isfinite(found.fall_se) else math.inf
    return off or (found.temperature > 1 and found.fall >= least)


def helps(found: Sureness) -> bool:
    """Return whether the temperature lowers both the loss and the calibration error."""
    holds = found.trial is None or found.trial.holds
    return holds and found.fall > 0 and found.mended < found.given


def sureness_section(evidence: Evidence) -> dict[str, float] | None:
    """Return the report's calibration of a clearly miscalibrated classifier, else None."""
    sure = sureness(evidence)
    if isinstance(sure, str) or not is_off(sure) or not helps(sure):
        return None
    return {
        "sure": sure.sure,
        "error": sure.error,
        "temperature": sure.temperature,
        "mended": sure.mended,
    }
