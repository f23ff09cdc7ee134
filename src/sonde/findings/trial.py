"""A trial change of a scan, and its effect on held-out rows.

Rows with an even hash of their group choose a change, the others judge it. All rules share this
split, so that their trials can be compared row by row.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import t as student
from scipy.stats import wilcoxon
from torch import Tensor

from sonde.core.batch import words_of
from sonde.core.paired_gains import group_means, sign_test
from sonde.findings.words.text import number, percent, plural

Scope = Literal["mode", "answers", "inputs", "labels", "part", "statistics", "some inputs", "head"]
Measure = Literal["accuracy", "error", "loss", "states", "probabilities"]
Misfit = Literal["none", "left", "gone"]

SCOPES: Final[tuple[Scope, ...]] = (
    "mode", "answers", "inputs", "labels", "part", "statistics", "some inputs", "head",
)  # fmt: skip
"""Parts that a change can modify, smallest first: a larger part can fit more by chance."""
LEVEL: Final = 0.01
BEYOND: Final = 1 / 3
"""Part of what is left wrong without some values that a cause must correct."""
PROVED: Final = 0.05
"""p-value below which scores are better than those of a rival."""
SURER: Final = 0.9
"""Log loss relative to a rival's from which two changes are told apart by it."""
COMPARED: Final = 12
"""Least number of common rows for a comparison of two trials."""
LEAST_SCORE: Final = -8.0
"""Least score of a row in such a comparison, so that one row cannot decide."""
CANNOT_RUN: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What the code of a model raises on inputs, or with parts, that do not suit it: such a change is
left out. Torch's attention asserts the shape of masks, for example."""


def chooses(group: Int[Tensor, "row"]) -> Bool[Tensor, "row"]:
    """Return the selection rows, which choose a change, by group hash; the others are held out."""
    return torch.remainder(group, 2) == 0


def chooses_by_key(keys: Sequence[bytes]) -> Bool[Tensor, "row"]:
    """Return the selection rows, which choose a change, by the key of their group."""
    return chooses(words_of(keys))


@dataclass(frozen=True, eq=False)
class Trial:
    """One change, and the scores of the held-out rows before and after it.

    Parameters
    ----------
    change : str
        The change in words that follow "with".
    scope : Scope
        What the change touches.
    measure : Measure
        Meaning of the scores: 1 for a correct answer, 1 less the squared error over the variance of
        the targets, the negative loss, or the negative difference between two runs of a row.
        Trials on probabilities leave the answers as they are.
    rows : Int[Tensor, "row"]
        Examples by planned order.
    before, after : Float[Tensor, "row"]
        Higher is better.
    nats : Float[Tensor, "row"] or None
        For answers: the log loss of each row after the change, at the temperature that suits the
        rows that choose. Tells changes apart that correct equally many answers.
    group : Int[Tensor, "row"] or None
        Group of each row: groups are the units of the test. None = every row is its own group.
    is_constant : bool
        Whether the change is a constant on one logit, or one fitted to the numbers, which corrects
        some of the answers whatever is wrong before it.
    leaves_out : bool
        Whether the change puts usual values in the place of others: it says where the fault is,
        but it does not undo it, and is never the cause.
    rival : str
        A change of other values that does as well, in words that follow "with"; empty if none is
        known. The rows do not say which of the two undoes the fault: neither is the cause.
    misfit : Misfit
        What the change does to a batch norm whose inputs lie far from its running statistics:
        they stay far, or they are near after the change. The inputs and weights of training make
        them fit. "none" if they fit before, or if there is no batch norm.
    """

    change: str
    scope: Scope
    measure: Measure
    rows: Int[Tensor, "row"]
    before: Float[Tensor, "row"]
    after: Float[Tensor, "row"]
    nats: Float[Tensor, "row"] | None = None
    group: Int[Tensor, "row"] | None = None
    is_constant: bool = False
    leaves_out: bool = False
    rival: str = ""
    misfit: Misfit = "none"

    @property
    def gain(self) -> float:
        """Mean gain on the held-out rows."""
        return float((self.after - self.before).mean()) if len(self.rows) else 0.0

    @cached_property
    def p(self) -> float:
        """p-value of the gain: sign test for answers, signed-rank test for other scores.

        Groups count as rows.

        Probabilities that are softened cost most rows a little and spare a few rows much: what
        counts is the mean, by Student's test.
        """
        if self.measure == "probabilities":
            less = (self.after - self.before).double()
            less = less if self.group is None else group_means(less, self.group)
            error = float(less.std()) / max(len(less), 1) ** 0.5 if len(less) > 1 else math.inf
            return float(student.sf(float(less.mean()) / max(error, 1e-12), max(len(less) - 1, 1)))
        return chance_of_gain(self.before, self.after, self.group)

    @property
    def holds(self) -> bool:
        """True if the held-out rows improved significantly."""
        return self.gain > 0 and self.p < LEVEL


def is_beyond(trial: Trial, held: Trial) -> bool:
    """Return whether a change does clearly better than usual values in the place of others.

    It corrects a third of what is left wrong without these values, and rows that chose neither tell
    the two apart: by their scores (5 %), or by a log loss that is a tenth lower (1 %). A small
    factor hides a column of noise about as well as its median does, and leaves answers as unsure.

    Parameters
    ----------
    trial : Trial
    held : Trial
        Of usual values in the place of others.

    Returns
    -------
    bool
        False if too few rows are in both trials.
    """
    if trial.measure != held.measure:
        return False
    places = [{row: i for i, row in enumerate(t.rows.tolist())} for t in (trial, held)]
    common = sorted(set(places[0]) & set(places[1]))
    if len(common) < COMPARED:
        return False
    at = [torch.tensor([place[row] for row in common]) for place in places]
    after, other = (t.after[i].double().clamp(min=LEAST_SCORE)
                    for t, i in zip((trial, held), at, strict=True))  # fmt: skip
    left = max(1 - float(other.mean()), 1e-12)
    if float((after - other).mean()) < BEYOND * left:
        return False
    group = None if trial.group is None else trial.group[at[0]]
    if chance_of_gain(other, after, group) < PROVED:
        return True
    if trial.nats is None or held.nats is None:
        return False
    own, loss = trial.nats[at[0]], held.nats[at[1]]
    return float(own.mean()) < SURER * float(loss.mean()) and (
        chance_of_gain(-loss, -own, group) < LEVEL
    )


def gained(trial: Trial) -> str:
    """Describe the scores after and before a change, and the number of held-out rows."""
    before, after = (float(x.mean()) for x in (trial.before, trial.after))
    rows = f"{plural(len(trial.rows), 'row')} held out from the choice"
    if trial.measure == "accuracy":
        return f"correct on {percent(after)} instead of {percent(before)} ({rows})"
    if trial.measure == "error":
        return f"an R^2 of {number(after)} instead of {number(before)} ({rows})"
    return f"{number(-after, 3)} nats instead of {number(-before, 3)} ({rows})"


def chance_of_gain(
    before: Float[Tensor, "row"],
    after: Float[Tensor, "row"],
    group: Int[Tensor, "row"] | None = None,
) -> float:
    """Return the one-sided p-value of a paired gain: sign test if binary, else signed ranks.

    Ranks, because one huge error would hide what a change does to all other rows. Rows of a group
    are no independent witnesses: with groups, the mean gain of a group counts as one row.
    """
    rows = (after - before).double()
    less = rows if group is None else group_means(rows, group)
    up, down = int((less > 0).sum()), int((less < 0).sum())
    if up + down == 0:
        return 1.0
    if bool(((rows == 0) | (rows.abs() == 1)).all()):
        return sign_test(up, down)
    with warnings.catch_warnings():
        # SciPy before 1.15 warns of fewer than ten ranks; the level of a trial asks for more.
        warnings.simplefilter("ignore", UserWarning)
        test = wilcoxon(less.numpy(), alternative="greater")
    return float(test.pvalue)  # type: ignore[union-attr]
