"""The model on the same inputs given in other ways, and what its batch norms were trained on.

Run after the pass on few rows. The norms' inputs are always looked at. Other inputs are tried only
if the model is wrong far more often than a probe of its states, if it is wrong on a tenth of the
rows, or if the inputs of its first norm do not fit its statistics. From 15 wrong rows on, these
rows are also tried by themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.findings._mended_rows import MendedRows, mended_rows, wrong_and_right
from sonde.findings._norm_fits import NormFit, batch_norms, norm_fits
from sonde.findings._number_answers import number_answers
from sonde.findings._tried_forms import (
    HALF,
    ROWS,
    Tried,
    forms_of,
    is_changeable,
    numbers_of,
    simple_form,
    tried_forms,
)
from sonde.findings._undone import refitted_norms
from sonde.findings.answers import class_answers, compared_answers
from sonde.findings.evidence import Evidence
from sonde.findings.self_check import chosen_examples
from sonde.findings.trial import Trial, chooses_by_key
from sonde.tap import LiveStream
from sonde.tap.model.seeding import untouched
from sonde.tap.streams.small_batches import SmallBatches, small_batches

LEAST = 24
FORMS = 16  # that are tried on fewer rows if they cost too much on all
USUAL_WEIGHTS = 2_000_000
GAP, ERRORS = 0.1, 3.0
MISFIT = 0.125  # of a mean that is off by half a standard deviation


@dataclass(frozen=True, eq=False)
class VariantEvidence:
    """Batch norms on rows of the data, and other ways to give the inputs.

    Parameters
    ----------
    norms : tuple of NormFit
        In order of execution.
    tried : tuple of Tried
        The inputs as they are first; empty where there was no reason to try others.
    probe : float
        Accuracy, or R^2, of a linear probe on the last layer where it is far above the model's.
    n_rows : int
    rows : Int[Tensor, "row"]
        Examples of the scores, by planned order.
    chooses : Bool[Tensor, "row"]
        Which of them choose a form; the others judge it.
    best : Tried or None
        The form that the rows of ``chooses`` choose, in its simplest terms.
    mended : tuple of MendedRows
        The form that brings wrong rows nearest to right ones, and the form that mends most of them.
        Empty if the model gets too few rows wrong, or if no form mends half of them.
    refitted : Trial or None
        The norms with statistics of the rows, if these do not fit and the answers can be judged.
    """

    norms: tuple[NormFit, ...] = ()
    tried: tuple[Tried, ...] = ()
    probe: float = math.nan
    n_rows: int = 0
    rows: Int[Tensor, "row"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    chooses: Bool[Tensor, "row"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    best: Tried | None = None
    mended: tuple[MendedRows, ...] = ()
    refitted: Trial | None = None


def variant_evidence(stream: LiveStream, evidence: Evidence) -> VariantEvidence:
    """Run the model on a few rows of its data, and on the same rows given otherwise."""
    norms, probe = batch_norms(stream), _better_probe(evidence)
    judged = not math.isnan(probe) or _often_wrong(evidence)
    rows = wrong_and_right(evidence) if judged or _is_small(evidence) else None
    if not norms and not judged and rows is None:
        return VariantEvidence()
    small = small_batches(
        stream.model, stream.inputs, chosen_examples(stream, ROWS, evidence.data.seed), None
    )
    able = evidence.budget.rows(ROWS, LEAST, FORMS, HALF)
    small = replace(small, singles=small.singles[:able])
    if len(small) < LEAST:
        return VariantEvidence()
    with untouched(stream.model.module), torch.no_grad():
        fits = norm_fits(stream, small, norms)
        first = fits[0].misfit if fits else 0.0
        tried: tuple[Tried, ...] = ()
        best, (order, chooses) = None, _judged_rows(small, evidence)
        changeable = is_changeable(small.singles[0])
        if changeable and (first > MISFIT or judged):
            forms = forms_of(numbers_of(small), evidence, judged)
            tried = tuple(tried_forms(stream, small, forms, norms[:1], evidence, judged))
            best = _chosen(stream, small, tried, chooses, evidence)
        mended = mended_rows(stream, evidence, rows) if changeable and rows is not None else ()
        refitted = None
        bad = [fit for fit in fits if fit.misfit > MISFIT]
        if bad:
            unmoved = {f.path for f in bad if f.unmoved and len(bad) < len(fits)}
            names = unmoved or {f.path for f in bad}
            modules = [module for path, module in norms if path in names]
            refitted = refitted_norms(stream, evidence, small, modules)
    return VariantEvidence(fits, tried, probe, len(small), order, chooses, best, mended, refitted)


def _judged_rows(
    small: SmallBatches, evidence: Evidence
) -> tuple[Int[Tensor, "row"], Bool[Tensor, "row"]]:
    """Return the rows that are scored, and which of them choose a form."""
    whole, target = small.together(range(len(small))), evidence.data.target
    known = whole.label >= 0 if target is None else torch.isfinite(target[whole.order])
    return whole.order[known], chooses_by_key(whole.group_keys)[known]


def _chosen(
    stream: LiveStream,
    small: SmallBatches,
    tried: Sequence[Tried],
    chooses: Bool[Tensor, "row"],
    evidence: Evidence,
) -> Tried | None:
    """Return the form with the best mean over the rows that choose; a factor made simple."""
    known = [t for t in tried[1:] if t.score is not None and len(t.score) == len(chooses)]
    if not known or not bool(chooses.any()):
        return None

    def of_choosing(form: Tried) -> Float[Tensor, "row"]:
        assert form.score is not None
        return form.score[chooses]

    best = max(known, key=lambda form: float(of_choosing(form).mean()))
    return simple_form(stream, small, best, of_choosing, evidence)


def _better_probe(evidence: Evidence) -> float:
    """Return the score of a probe of the last layer if it is far above the model's, else NaN."""
    found, numbers = compared_answers(evidence), number_answers(evidence)
    if not isinstance(numbers, str):
        spread = numbers.mean.mean()
        reached = 1 - float(numbers.probes[-1][1].mean() / spread)
        lag, group = (numbers.own - numbers.probes[-1][1]) / spread, numbers.group
    elif not isinstance(found, str) and found.labels is not None:
        last = found.labels.sites[-1]
        reached, lag, group = last.accuracy, last.hit - found.right.double(), found.group
    else:
        return math.nan
    clear = float(lag.mean()) > ERRORS * float(lag.std()) / max(1, len(torch.unique(group))) ** 0.5
    return reached if clear and float(lag.mean()) > GAP else math.nan


def _often_wrong(evidence: Evidence) -> bool:
    """Return whether a small classifier is wrong on a tenth of the rows."""
    found = class_answers(evidence)
    return not isinstance(found, str) and found.accuracy < 1 - GAP and _is_small(evidence)


def _is_small(evidence: Evidence) -> bool:
    return evidence.model is None or evidence.model.n_parameters < USUAL_WEIGHTS
