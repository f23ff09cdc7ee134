"""The model on changed inputs, and its batch norms compared with their inputs.

Run after the pass on few rows. The norms' inputs are always looked at. Other inputs are tried only
if the model is wrong far more often than a probe of its states, if it is wrong on a tenth of the
rows, or if the inputs of its first norm do not fit its statistics. From 15 wrong rows on, these
rows are also tried by themselves.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.findings.evidence.answers.answers import answer_columns, class_answers, compared_answers
from sonde.findings.evidence.answers.best_probe import best_probe, reference_lead
from sonde.findings.evidence.answers.number_answers import number_answers
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import groups_at, shared_rows
from sonde.findings.evidence.trials.anomaly_trials import refitted_norms
from sonde.findings.evidence.trials.answer_trials import constants_do_as_well
from sonde.findings.evidence.trials.batch_norm_fits import (
    CHUNK,
    MISFIT,
    NormFit,
    batch_norms,
    norm_fits,
)
from sonde.findings.evidence.trials.input_forms import (
    Change,
    CodedChange,
    Inputs,
)
from sonde.findings.evidence.trials.mended_rows import (
    MendedRows,
    mended_rows,
    tensor_name,
    wrong_and_right,
)
from sonde.findings.evidence.trials.rivals import are_rivals
from sonde.findings.evidence.trials.stored_columns import StoredColumns, stored_columns
from sonde.findings.evidence.trials.tempered_loss import cooled_loss
from sonde.findings.evidence.trials.tried_forms import (
    HALF,
    ROWS,
    Tried,
    forms_of,
    is_changeable,
    numbers_of,
    on_top,
    score_rows_of,
    simple_form,
    tried_forms,
)
from sonde.findings.self_check import chosen_examples, thinned
from sonde.findings.trial import LEVEL, Trial, chance_of_gain, chooses_by_key
from sonde.findings.trial_budget import counted
from sonde.findings.words.text import listed
from sonde.tap import LiveStream
from sonde.tap.model.seeding import untouched
from sonde.tap.streams.small_batches import SmallBatches, small_batches

LEAST = 24
FORMS = 16  # that are tried on fewer rows if they cost too much on all
FEW, SCREENED, AGAIN, JUDGES = 64, 16, 32, 256  # rows
KEPT, MOST = 3, 0.8  # forms that are tried again, and the part of the budget for them
TIED, SAME, NIL = 0.03, 1.05, 0.005
GAP, ERRORS = 0.1, 3.0
SLACK, WORST = 0.03, -8.0  # of a score below the probe's; the least score that a row counts
HIDDEN = 0.3  # factor of a column, beside the largest one, below which a form may hide it
SEVERE = 0.5  # nats: of a mean that is off by a whole standard deviation


def _no_rows() -> tuple[Tensor, Tensor]:
    return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class VariantEvidence:
    """Batch norms on rows of the data, and answers to changed inputs.

    Parameters
    ----------
    norms : tuple of NormFit
        In order of execution.
    tried : tuple of Tried
        The inputs as they are first; empty where there was no reason to try others.
    probe : float
        Accuracy, or R^2, of the best linear probe of a layer where it is far above the model's.
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
    stored : StoredColumns or None
        Columns of a table that do not have the mean and spread that the model has stored of them.
    restored : tuple of Tried
        The inputs as they are, and with the changes that make these columns fit.
    judged : (Int[Tensor, "row2"], Bool[Tensor, "row2"])
        Examples of the scores of ``restored``, and which of them choose a change.
    tensor : str
        Name of the argument that takes the one input tensor.
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
    rival: Tried | None = None
    mended: tuple[MendedRows, ...] = ()
    refitted: Trial | None = None
    stored: StoredColumns | None = None
    restored: tuple[Tried, ...] = ()
    judged: tuple[Int[Tensor, "row2"], Bool[Tensor, "row2"]] = field(default_factory=_no_rows)
    tensor: str = ""


@counted
def variant_evidence(stream: LiveStream, evidence: Evidence) -> VariantEvidence:
    """Run the model on a few rows of its data, unchanged and changed."""
    norms, probe = batch_norms(stream), _better_probe(evidence)
    judged = not math.isnan(probe) or _often_wrong(evidence)
    rows = wrong_and_right(evidence) if judged or _is_cheap(evidence) else None
    names = evidence.data.inputs
    if not norms and not judged and rows is None and not names:
        return VariantEvidence()
    every = small_batches(
        stream.model, stream.inputs, chosen_examples(stream, ROWS, evidence.data.seed), None
    )
    able = evidence.budget.rows(ROWS, LEAST, FORMS, HALF)
    small = thinned(every, able, evidence.data.seed)
    if len(small) < LEAST:
        return VariantEvidence()
    with untouched(stream.model.module), torch.no_grad():
        fits = norm_fits(stream, small, norms)
        variants = VariantEvidence(
            fits, probe=probe, n_rows=len(small), tensor=tensor_name(stream, small)
        )
        changeable = is_changeable(small.singles[0])
        # What is tried last gets what is left of the budget. Norms inside the model that are far
        # off come before forms of inputs if the first norm, which sees the inputs, is not.
        is_inside = bool(fits) and fits[0].misfit < SEVERE <= max(fit.misfit for fit in fits)
        refitted = _refitted(stream, evidence, small, every, norms, fits) if is_inside else None
        if changeable:
            variants = _with_stored(stream, every, evidence, variants)
        first = fits[0].misfit if fits else 0.0
        if changeable and (first > MISFIT or judged):
            variants = _with_forms(stream, every, small, norms[:1], evidence, variants, judged)
        variants = _judged_on_more(stream, evidence, variants)
        mended = mended_rows(stream, evidence, rows) if changeable and rows is not None else ()
        if not is_inside:
            refitted = _refitted(stream, evidence, small, every, norms, fits)
    return replace(variants, mended=mended, refitted=refitted)


def _with_stored(
    stream: LiveStream, every: SmallBatches, evidence: Evidence, found: VariantEvidence
) -> VariantEvidence:
    """Add the columns that differ from the model's stored statistics."""
    x = numbers_of(every)
    names = evidence.data.inputs
    if len(names) != x.shape[1]:  # that of the argument
        names = tuple(f"column {i}" for i in range(x.shape[1]))
    stored = stored_columns(stream, x, names)
    if stored is None or stored.change is None:
        return replace(found, stored=stored)
    forms = {"": lambda x: x, listed(stored.words): stored.change}
    restored = tuple(tried_forms(stream, every, forms, (), evidence, True))
    return replace(found, stored=stored, restored=restored, judged=_judged_rows(every, evidence))


def _with_forms(
    stream: LiveStream,
    every: SmallBatches,
    small: SmallBatches,
    norms: Sequence[tuple[str, nn.modules.batchnorm._BatchNorm]],
    evidence: Evidence,
    found: VariantEvidence,
    judged: bool,
) -> VariantEvidence:
    """Add the answers to other forms of the inputs, and the form chosen on selection rows.

    If a forward is so costly that few rows can be run in all forms, rows that choose screen the
    forms first.
    """
    forms, part = forms_of(numbers_of(every), evidence, judged), HALF
    if judged and evidence.data.target is None and len(small) < min(FEW, len(every)):
        small, forms = _screened(stream, every, forms, evidence)
        part = MOST
    tried = tuple(tried_forms(stream, small, forms, norms, evidence, judged, part))
    order, chooses = _judged_rows(small, evidence)
    best = _chosen(stream, small, tried, chooses, evidence)
    rival = None
    if judged and best is not None:
        best = _stacked(stream, small, tried, best, chooses, evidence, part)
        rival = _rival(
            small, (*tried[1:], *_without_hidden(stream, small, best, evidence)), best, chooses
        )
    return replace(
        found, tried=tried, n_rows=len(small), rows=order, chooses=chooses, best=best, rival=rival
    )


def _rival(
    small: SmallBatches, tried: Sequence[Tried], best: Tried, chooses: Bool[Tensor, "row"]
) -> Tried | None:
    """Return the rival that does best on selection rows; None if there is none.

    Rivals are forms of other columns, and the same form without the columns that it hides.
    """
    others = [t for t in tried
              if (t.hides or are_rivals(t.columns, best.columns))
              and t.score is not None and len(t.score) == len(chooses)]  # fmt: skip
    return min(others, key=_rank(small, others, chooses), default=None)


def _without_hidden(
    stream: LiveStream, small: SmallBatches, best: Tried, evidence: Evidence
) -> Iterator[Tried]:
    """Yield the form with the columns held that it makes small beside others; nothing if none.

    A form that divides columns of noise, or multiplies the others, hides the noise and undoes
    nothing. Then the answers are as good without these columns.
    """
    x = numbers_of(small)
    if x.ndim != 2:
        return
    slope = _slopes(x, best.change(x))
    hidden = torch.nonzero(slope < HIDDEN * slope.max()).flatten().tolist()
    if not hidden or bool(slope.isnan().any()) or hidden == [*best.columns]:
        return  # a single column that is held competes in SND015, with its medians of these rows
    median = best.change(x)[:, hidden].median(0).values

    def change(x: Inputs) -> Inputs:
        changed = best.change(x).clone()
        changed[:, hidden] = median
        return changed

    names = evidence.data.inputs
    places = [names[i] if len(names) == x.shape[1] else f"column {i}" for i in hidden]
    medians = "its median" if len(hidden) == 1 else "their medians"
    words = f"with {listed(places)} held at {medians}, too"
    forms = {words: CodedChange(change, "", tuple(hidden))}
    for form in tried_forms(stream, small, forms, (), evidence, True):
        yield replace(form, hides=True)


def _slopes(x: Inputs, changed: Inputs) -> Float[Tensor, "column"]:
    """Return the factor of each column of a table; NaN if a column is not just multiplied.

    Columns that do not vary have the largest factor: no form hides them.
    """
    if changed.shape != x.shape:
        return torch.full((1,), math.nan)
    before, after = ((one - one.mean(0)).double() for one in (x, changed))
    slope = (before * after).sum(0) / before.square().sum(0).clamp(min=1e-300)
    far = (after - slope * before).square().sum(0) > 1e-4 * after.square().sum(0)
    slope = torch.where(far, math.nan, slope.abs())
    varies = x.amax(0) > x.amin(0)
    return torch.where(varies, slope, slope[varies].max() if bool(varies.any()) else 1.0)


def _screened(
    stream: LiveStream, every: SmallBatches, forms: dict[str, Change], evidence: Evidence
) -> tuple[SmallBatches, dict[str, Change]]:
    """Return selection rows, unchanged and in the forms that do best on half of them."""
    chooses = chooses_by_key([one.group_keys[0] for one in every.singles]).tolist()
    choosing = tuple(one for one, is_one in zip(every.singles, chooses, strict=True) if is_one)
    again = thinned(replace(every, singles=choosing), AGAIN, evidence.data.seed)
    few = thinned(again, SCREENED, evidence.data.seed)
    label = few.together(range(len(few))).label
    label = label[label >= 0]
    losses: dict[str, float] = {}
    for form in tried_forms(stream, few, forms, (), evidence, True):
        loss = None if form.logits is None else cooled_loss(form.logits, label, label >= 0)
        losses[form.words] = math.inf if loss is None else float(loss.mean())
    best = sorted((w for w in losses if w), key=lambda words: losses[words])[:KEPT]
    return again, {words: forms[words] for words in ("", *best)}


def _judged_on_more(
    stream: LiveStream, evidence: Evidence, found: VariantEvidence
) -> VariantEvidence:
    """Test the chosen form on as many rows as the budget allows.

    Rows that did not choose it judge it. The answers to the unchanged inputs are those of the scan.
    """
    best, answers, seed = found.best, _answers_by_order(evidence), evidence.data.seed
    if best is None or best.score is None or not found.tried:
        return found
    asked = [form for form in (best.single, best, found.rival) if form is not None]
    n = evidence.budget.rows(JUDGES, 0, len(asked) + 1 - bool(answers))
    which = [i for i in chosen_examples(stream, n, seed) if not answers or i in answers]
    if len(which) <= len(found.rows):
        return _with_best(
            found, _surpassing(best, found.tried[0], found.rows, found.chooses, evidence)
        )
    small = small_batches(stream.model, stream.inputs, which, None)
    forms: dict[str, Change] = {"": found.tried[0].change} if not answers else {}
    forms |= {form.words: form.change for form in asked}
    scored = list(tried_forms(stream, small, forms, (), evidence, True, 1))
    if answers and scored:
        scored = [_as_scanned(small, answers, evidence), *scored]
    if len(scored) < 1 + len(asked) or any(form.score is None for form in scored):
        return _with_best(found, best.single or best)
    order, _ = _judged_rows(small, evidence)
    chose = groups_at(evidence, found.rows[found.chooses])
    judged = {form.words: replace(form, score=one.score, logits=one.logits, numbers=one.numbers)
              for form, one in zip(asked, scored[1:], strict=True)}  # fmt: skip
    chooses = torch.isin(groups_at(evidence, order), chose)
    given = replace(scored[0], misfit=found.tried[0].misfit)
    single = None if best.single is None else judged[best.single.words]
    chosen = _surpassing(
        replace(judged[best.words], single=single), given, order, chooses, evidence
    )
    rival = None if found.rival is None else judged[found.rival.words]
    tried = (given, *found.tried[1:])
    return _with_best(replace(found, tried=tried, rows=order, chooses=chooses), chosen, rival)


def _with_best(found: VariantEvidence, best: Tried, rival: Tried | None = None) -> VariantEvidence:
    """Add the form that was judged, and its rival unless that hides columns of another form."""
    rival = found.rival if rival is None else rival
    is_of_best = found.best is not None and best.words == found.best.words
    kept = rival if rival is None or not rival.hides or is_of_best else None
    return replace(found, best=best, rival=kept)


def _stacked(
    stream: LiveStream,
    small: SmallBatches,
    tried: Sequence[Tried],
    best: Tried,
    chooses: Bool[Tensor, "row"],
    evidence: Evidence,
    part: float,
) -> Tried:
    """Return the best form on top of one of the best single forms, or the best single form.

    Two faults at once, such as channels in reverse order and no normalisation, leave every single
    form far from right. Nothing more is tried where a single form is as right as a probe.
    """
    probe = best_probe(evidence)
    reach = 1.0 if probe is None else probe.mean
    if best.score is None or float(best.score[chooses].mean()) > reach - SLACK:
        return best
    singles = [t for t in tried[1:] if t.score is not None and len(t.score) == len(chooses)]
    rank = _rank(small, singles, chooses)
    starts = [best, *(t for t in sorted(singles, key=rank) if t.words != best.words)][:KEPT]
    stacked = [
        form
        for start in starts
        for form in on_top(stream, small, start, best, evidence, part)
        if form.score is not None and len(form.score) == len(chooses)
    ]
    top = min(stacked, key=_rank(small, stacked, chooses), default=best)
    if top.score is None or float((top.score - best.score)[chooses].mean()) <= 0:
        return best
    return top


def _rank(
    small: SmallBatches, forms: Sequence[Tried], chooses: Bool[Tensor, "row"]
) -> Callable[[Tried], tuple[float, float]]:
    """Return a key that puts forms in order: least log loss, or best score, of selection rows."""
    nats = _nats(small, forms, chooses)

    def key(form: Tried) -> tuple[float, float]:
        assert form.score is not None  # the callers keep forms with scores
        score = float(form.score[chooses].double().clamp(min=WORST).mean())
        return nats.get(form.words, 0.0), -score

    return key


def _surpassing(
    best: Tried,
    given: Tried,
    rows: Int[Tensor, "row"],
    chooses: Bool[Tensor, "row"],
    evidence: Evidence,
) -> Tried:
    """Return a form on top of another form if it surpasses the best single form on held-out rows.

    It also has to surpass constants on the logits of the unchanged inputs. Else return the single
    form.
    """
    single, judge = best.single, ~chooses
    if single is None:
        return best
    if single.score is None or best.score is None or int(judge.sum()) < CHUNK // 2:
        return single
    gain = (best.score - single.score)[judge].double()
    group = groups_at(evidence, rows[judge])
    p = chance_of_gain(single.score[judge], best.score[judge], group)
    if float(gain.mean()) <= 0 or p >= LEVEL:
        return single
    if given.logits is None or best.logits is None:
        return best
    label = evidence.data.label[rows]
    is_like = constants_do_as_well(given.logits, best.logits, label, chooses, group)
    return single if is_like else best


def _answers_by_order(evidence: Evidence) -> dict[int, Float[Tensor, "class"]]:
    """Return the logits of the sampled rows by planned order; empty if they are not known."""
    columns, order = answer_columns(evidence), shared_rows(evidence).order
    if isinstance(columns, str) or order is None or evidence.data.target is not None:
        return {}
    return dict(zip(order.tolist(), columns[0], strict=True))


def _as_scanned(
    small: SmallBatches, known: dict[int, Float[Tensor, "class"]], evidence: Evidence
) -> Tried:
    """Return the unchanged inputs with the answers from the scan's pass."""
    whole = small.together(range(len(small)))
    logits = torch.stack([known[i] for i in whole.order.tolist()])
    score = score_rows_of(logits, whole.order, whole.label, evidence)
    return Tried("", score, math.nan, logits=logits[whole.label >= 0])


def _refitted(
    stream: LiveStream,
    evidence: Evidence,
    small: SmallBatches,
    every: SmallBatches,
    norms: Sequence[tuple[str, nn.modules.batchnorm._BatchNorm]],
    fits: Sequence[NormFit],
) -> Trial | None:
    """Return the trial of misfitting norms with the statistics of the rows."""
    bad = [fit for fit in fits if fit.misfit > MISFIT]
    if not bad:
        return None
    unmoved = {f.path for f in bad if f.unmoved and len(bad) < len(fits)}
    together = [f.path for f in bad if f.path in unmoved or not unmoved]
    worst = max(bad, key=lambda fit: fit.misfit)
    severe = next((fit for fit in bad if fit.misfit >= SEVERE), worst)
    alone = {fit.path: [fit.path] for fit in (bad[0], severe, worst)}
    choices = {"its batch norms": together, **alone}
    modules = dict(norms)
    return refitted_norms(
        stream,
        evidence,
        small,
        every,
        {words: [modules[p] for p in paths] for words, paths in choices.items()},
    )


def _judged_rows(
    small: SmallBatches, evidence: Evidence
) -> tuple[Int[Tensor, "row"], Bool[Tensor, "row"]]:
    """Return the scored rows, and which of them are selection rows."""
    whole, target = small.together(range(len(small))), evidence.data.target
    is_known = whole.label >= 0 if target is None else torch.isfinite(target[whole.order])
    return whole.order[is_known], chooses_by_key(whole.group_keys)[is_known]


def _chosen(
    stream: LiveStream,
    small: SmallBatches,
    tried: Sequence[Tried],
    chooses: Bool[Tensor, "row"],
    evidence: Evidence,
) -> Tried | None:
    """Return the form with the best mean on selection rows, with a simplified factor."""
    scored = [t for t in tried[1:] if t.score is not None and len(t.score) == len(chooses)]
    if not scored or not bool(chooses.any()):
        return None

    def of_choosing(form: Tried) -> Float[Tensor, "row"]:
        assert form.score is not None
        return form.score[chooses]

    best = max(scored, key=lambda form: float(of_choosing(form).mean()))
    nats = _nats(small, scored, chooses)
    most = float(of_choosing(best).mean()) - TIED  # answers hardly tell forms apart: losses do
    tied = [f for f in scored if f.words in nats and float(of_choosing(f).mean()) >= most]
    least = min((nats[form.words] for form in tied), default=0.0)  # about as little: the first
    best = next((form for form in tied if nats[form.words] <= SAME * least + NIL), best)
    group = groups_at(evidence, _judged_rows(small, evidence)[0][chooses])
    return simple_form(stream, small, best, of_choosing, evidence, group)


def _nats(
    small: SmallBatches,
    known: Sequence[Tried],
    chooses: Bool[Tensor, "row"],
) -> dict[str, float]:
    """Return the mean log loss of the selection rows in each form, by description."""
    label = small.together(range(len(small))).label
    label, nats = label[label >= 0], dict[str, float]()
    for form in known:
        loss = None if form.logits is None else cooled_loss(form.logits, label, chooses)
        if loss is not None:
            nats[form.words] = float(loss[chooses].mean())
    return nats


def _better_probe(evidence: Evidence) -> float:
    """Return the score of a reference or of a layer's best probe if it far exceeds the model's.

    Else NaN.
    """
    compared, numbers = compared_answers(evidence), number_answers(evidence)
    if reference_lead(evidence) > GAP:
        return evidence.reference.mean
    if not isinstance(numbers, str):
        spread = numbers.mean.mean()
        error = numbers.probes[numbers.best][1]
        reached = 1 - float(error.mean() / spread)
        lag, group = (numbers.own - error) / spread, numbers.group
    elif not isinstance(compared, str) and compared.labels is not None:
        site = compared.labels.sites[compared.labels.best]
        reached, lag, group = site.accuracy, site.hit - compared.right.double(), compared.group
    else:
        return math.nan
    clear = float(lag.mean()) > ERRORS * float(lag.std()) / max(1, len(torch.unique(group))) ** 0.5
    return reached if clear and float(lag.mean()) > GAP else math.nan


def _often_wrong(evidence: Evidence) -> bool:
    """Return whether a classifier is wrong on a tenth of the rows and the budget suffices."""
    answers = class_answers(evidence)
    return not isinstance(answers, str) and answers.accuracy < 1 - GAP and _is_cheap(evidence)


def _is_cheap(evidence: Evidence) -> bool:
    """Return whether the budget of trials covers a test of the usual forms."""
    budget = evidence.budget
    return FORMS * budget.cost.of(SCREENED) <= HALF * budget.total
