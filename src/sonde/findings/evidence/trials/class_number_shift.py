"""Answers that are correct once all class numbers are shifted by the same step.

Works with a single row per class, where no renaming of classes can be fitted: labels that start at
1, a background class that was left out, notes that are read at another rate.
"""

from dataclasses import dataclass
from typing import Final

import torch

from sonde.findings.evidence.answers.answers import class_answers
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.answer_trials import answer_trial
from sonde.findings.trial import Trial, chooses

LEAST, CLASSES = 20, 5
MOST_RIGHT: Final = 0.5


@dataclass(frozen=True, eq=False)
class ClassStep:
    """The difference between a row's label and the model's answer, and its trial."""

    step: int
    trial: Trial


def class_step(evidence: Evidence) -> ClassStep | None:
    """Return the shift chosen on half of the groups, if it makes the other answers correct.

    None if the model is correct on half of the rows as it is, or if the step is correct on fewer.
    """
    answers = class_answers(evidence)
    if isinstance(answers, str):
        return None
    step, first = answers.answer - answers.truth, chooses(answers.group)
    if min(int(first.sum()), int((~first).sum())) < LEAST:
        return None
    best = int(step[first].mode().values)
    moved = step == best
    judge = ~first
    before, after = (float(x[judge].double().mean()) for x in (answers.right, moved))
    n_classes = len(torch.unique(answers.truth[judge & moved]))
    if best == 0 or before >= MOST_RIGHT or after < MOST_RIGHT or n_classes < CLASSES:
        return None
    words = f"all labels moved by {best:+d}"
    trial = answer_trial(evidence, answers.where, words, "answers", answers.right, moved)
    return None if trial is None or not trial.holds else ClassStep(best, trial)
