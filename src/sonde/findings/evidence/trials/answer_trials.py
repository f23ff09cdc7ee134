"""Trials that change the answers alone: a bias on one logit, other names, a new head."""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import ttest_rel
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.findings.evidence.answers.answers import (
    answer_columns,
    are_probabilities,
    compared_answers,
)
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.answers.number_answers import number_answers, number_rows
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows, two_logits
from sonde.findings.evidence.trials.tempered_loss import (
    as_logits,
    cooled_loss,
    fitted_constants,
)
from sonde.findings.trial import LEVEL, Scope, Trial, chance_of_gain, chooses
from sonde.findings.words.text import number, shortened

LEAST = 12
FEW_OF: Final = 5
"""Rows for each logit from which constants on all logits are fitted."""
ENOUGH: Final = 2 / 3
"""Fraction of a change's gain from which constants on the logits explain it as well."""
LESS: Final = 0.9
"""Log loss relative to that with constants from which a change does better."""
NIL: Final = 0.005
"""Nats by which it is lower at least."""


@dataclass(frozen=True, eq=False)
class LogitConstant:
    """The bias on one class's logit that corrects most answers.

    Parameters
    ----------
    label : int
        The class.
    constant : float
    line : str
        Code that makes the change on the model's output, whatever form its answers have.
    is_all : bool
        Whether constants on the other logits would add nothing. If they do, the constant makes up
        for part of what is wrong before the logits.
    trial : Trial
    """

    label: int
    constant: float
    line: str
    is_all: bool
    trial: Trial


@once
def logit_constant(evidence: Evidence) -> LogitConstant | None:
    """Return the class and its logit bias, chosen on the selection rows, or None."""
    columns = answer_columns(evidence)
    if isinstance(columns, str) or shared_rows(evidence).order is None:
        return None
    answers, label = columns
    logits = as_logits(answers)
    where = torch.nonzero((label >= 0) & (label < logits.shape[1])).flatten()
    chosen = chooses(shared_rows(evidence).group[where])
    if min(int(chosen.sum()), int((~chosen).sum())) < LEAST:
        return None
    x, truth = logits[where].double(), label[where]
    k, constant = best_constant(x[chosen], truth[chosen])
    constant = float(f"{constant:.3g}")  # as the line says it
    if constant == 0:
        return None
    moved = x.clone()
    moved[:, k] += constant
    name = shortened(class_name(evidence.data, k), 20)
    before, after = (scores.argmax(1) == truth for scores in (x, moved))
    words = f"{number(constant)} added to the logit of {name}"
    is_all = not _others_help(x, truth, k, chosen)
    trial = answer_trial(evidence, where, words, "answers" if is_all else "head", before, after)
    if trial is not None:
        nats = cooled_loss(moved, truth, chosen)
        nats = None if nats is None else nats[~chosen]
        trial = replace(trial, nats=nats, is_constant=True)
    line = _line(evidence, answers, k, constant)
    return None if trial is None else LogitConstant(k, constant, line, is_all, trial)


def _line(evidence: Evidence, answers: Float[Tensor, "row class"], k: int, constant: float) -> str:
    """Return code that adds a constant to the logit of class ``k``."""
    raw = evidence.column("logits", evidence.sites[0])
    width = 0 if raw is None else raw.shape[1]
    if width == 1:  # of the second class
        constant = constant if k == 1 else -constant
    sign, size = "-" if constant < 0 else "+", f"{abs(constant):.3g}"
    if not are_probabilities(answers):
        return f"logits{'' if width == 1 else f'[:, {k}]'} {sign}= {size}"
    if width == 1:
        return f"p = (p.logit() {sign} {size}).sigmoid()  # p: the model's output"
    return f"p[:, {k}] *= {math.exp(constant):.3g}; p /= p.sum(1, keepdim=True)"


def _others_help(
    logits: Float[Tensor, "row class"],
    truth: Int[Tensor, "row"],
    k: int,
    chosen: Bool[Tensor, "row"],
) -> bool:
    """Return whether biases on all logits give a lower held-out loss than one on logit ``k``."""
    n = logits.shape[1]
    if n * FEW_OF > int(chosen.sum()):  # too few rows to fit so many
        return False
    alone = torch.eye(n, dtype=logits.dtype)[:, [k]]
    losses = []
    for basis in (alone, torch.eye(n, dtype=logits.dtype)):
        scale, moved = fitted_constants(logits[chosen], truth[chosen], basis)
        losses.append(cross_entropy(scale * logits + moved, truth, reduction="none")[~chosen])
    test = ttest_rel(losses[0].numpy(), losses[1].numpy(), alternative="greater")
    return float(test.pvalue) < LEVEL  # type: ignore[union-attr]


def best_constant(
    logits: Float[Tensor, "row class"], truth: Int[Tensor, "row"]
) -> tuple[int, float]:
    """Return the class and the logit bias with the most correct answers.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0], [3.0, 1.0], [5.0, 0.0]])
    >>> best_constant(logits, torch.tensor([1, 1, 0]))
    (0, -3.5)
    """
    best, most = (0, 0.0), int((logits.argmax(1) == truth).sum())
    for k in range(logits.shape[1]):
        others = logits.clone()
        others[:, k] = -torch.inf
        rival, second = others.max(1)
        needs = rival - logits[:, k]  # a larger constant makes k the answer
        gain = (truth == k).long() - (second == truth).long()
        order = torch.argsort(needs)
        total = int((second == truth).sum()) + torch.cumsum(gain[order], 0)
        at = int(total.argmax())
        if int(total[at]) > most:
            low, most = float(needs[order[at]]), int(total[at])
            above = needs[needs > low]
            high = float(above.min()) if len(above) else low + 2.0
            best = (k, (low + high) / 2)
    return best


def constants_do_as_well(
    given: Float[Tensor, "row class"],
    made: Float[Tensor, "row class"],
    truth: Int[Tensor, "row"],
    chooses: Bool[Tensor, "row"],
    group: Int[Tensor, "row2"] | None = None,
    enough: float = ENOUGH,
) -> bool:
    """Return whether constants on the logits do about as well as a change of the inputs.

    Such a change says nothing about the inputs: larger inputs drown a wrong bias, for example. The
    selection rows fit the constants, on one logit or on all; the other rows judge. Constants do as
    well if they give two thirds of the gain in accuracy, unless the change leaves a lower log loss
    at the best temperature of each.

    Parameters
    ----------
    given, made : Float[Tensor, "row class"]
        Answers to the unchanged and to the changed inputs.
    truth : Int[Tensor, "row"]
    chooses : Bool[Tensor, "row"]
    group : Int[Tensor, "row2"] or None
        Groups of the rows that judge.
    enough : float, default=2 / 3
        Fraction of the gain that is about as well.

    Examples
    --------
    >>> truth = torch.arange(60) % 3
    >>> right = torch.eye(3)[truth]
    >>> biased, chooses = right + torch.tensor([0.0, 3.0, 7.0]), torch.arange(60) < 30
    >>> constants_do_as_well(biased, 10 * right, truth, chooses)
    True
    >>> constants_do_as_well(right.roll(1, 1), right, truth, chooses)
    False
    """
    x, new, judge = as_logits(two_logits(given)), as_logits(two_logits(made)), ~chooses
    is_finite = bool(torch.isfinite(x).all() and torch.isfinite(new).all())
    if not is_finite or int(truth.max()) >= x.shape[1]:
        return False
    x = _of_unit_size(x - x[chooses].mean(0))  # the constants make up for the means
    own = cooled_loss(_of_unit_size(new), truth, chooses)
    before, after = ((z.argmax(1) == truth)[judge].double().mean()
                     for z in (two_logits(given), new))  # fmt: skip

    def do_as_well(rival: Float[Tensor, "row class"]) -> bool:
        reached = (rival.argmax(1) == truth)[judge].double().mean()
        loss = cooled_loss(_of_unit_size(rival), truth, chooses)
        if float(reached - before) < enough * float(after - before):
            return False
        if own is None or loss is None:
            return True
        is_lower = float(own[judge].mean()) + NIL <= LESS * float(loss[judge].mean())
        return not is_lower or chance_of_gain(-loss[judge], -own[judge], group) >= LEVEL

    one = as_logits(two_logits(given)).clone()
    k, constant = best_constant(one[chooses], truth[chooses])
    one[:, k] += constant
    if do_as_well(one):
        return True
    n = x.shape[1]
    if n * FEW_OF > int(chooses.sum()):
        return False
    scale, moved = fitted_constants(x[chooses], truth[chooses], torch.eye(n, dtype=x.dtype))
    return do_as_well(scale * x + moved)


def _of_unit_size(logits: Float[Tensor, "row class"]) -> Float[Tensor, "row class"]:
    """Return logits of size 1 within a row, so that a fitted temperature is within its range."""
    size = logits.std(1).mean()
    return logits / size if float(size) > 0 else logits


def answer_trial(
    evidence: Evidence,
    where: Int[Tensor, "row"],
    change: str,
    scope: Scope,
    before: Bool[Tensor, "row"],
    after: Bool[Tensor, "row"],
) -> Trial | None:
    """Return the trial of a change, scored on held-out rows only."""
    shared = shared_rows(evidence)
    if shared.order is None:
        return None
    judge = ~chooses(shared.group[where])
    rows = shared.order[where][judge]
    scores = before[judge].double(), after[judge].double()
    return Trial(change, scope, "accuracy", rows, *scores, group=shared.group[where][judge])


@once
def new_head(evidence: Evidence) -> Trial | None:
    """Return the trial of a linear head that was retrained on the last layer, or None.

    Every row is judged by a head that was fitted without its group.
    """
    shared, numbers, compared = (
        shared_rows(evidence), number_answers(evidence), compared_answers(evidence),
    )  # fmt: skip
    words = "with its head retrained on the last layer's states"
    if shared.order is None:
        return None
    if not isinstance(numbers, str):
        labelled = number_rows(evidence)
        rows = torch.zeros(0, dtype=torch.int64) if isinstance(labelled, str) else labelled[0]
        if len(rows) != len(numbers.own):
            return None
        spread = float(numbers.mean.mean())
        before, after = (1 - error / spread for error in (numbers.own, numbers.probes[-1][1]))
        own = shared.group[rows]
        return Trial(words, "head", "error", shared.order[rows], before, after, group=own)
    if isinstance(compared, str) or compared.labels is None:
        return None
    last = compared.labels.sites[-1]
    where = compared.labels.where
    scores = compared.right.double(), last.hit.double()
    own = shared.group[where]
    return Trial(words, "head", "accuracy", shared.order[where], *scores, group=own)
