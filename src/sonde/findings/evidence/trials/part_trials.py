"""Test whether a small change to one part of the model restores its answers.

A part that is twice too strong, an activation of another model or two exchanged blocks leave
weights and shapes as they should be. Undoing them is a trial: if the loss falls by much on rows
that did not choose the change, the part is named, with the gain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.core.batch import words_of
from sonde.core.inputs import InputBatch
from sonde.engine.progress import Bar
from sonde.findings.evidence.answers.answers import class_answers, compared_answers, judge_heads
from sonde.findings.evidence.answers.best_probe import reference_lead
from sonde.findings.evidence.answers.head_answers import Heads
from sonde.findings.evidence.answers.number_answers import number_answers
from sonde.findings.evidence.modules.fresh_weights import untrained_share
from sonde.findings.evidence.modules.module_facts import read_modules
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.counted_tokens import ids_of
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.evidence.trials.answer_scores import AnswerScores, answer_scores
from sonde.findings.evidence.trials.batch_norm_fits import misfit_after, worst_misfit
from sonde.findings.evidence.trials.part_changes import (
    PartChange,
    answers_scaled,
    grid,
    part_changes,
)
from sonde.findings.evidence.trials.tempered_loss import crossed_loss, least_convex
from sonde.findings.evidence.trials.weight_changes import weight_changes
from sonde.findings.self_check import chosen_examples, thinned
from sonde.findings.trial import CANNOT_RUN, Trial, chance_of_gain, chooses_by_key
from sonde.findings.trial_budget import counted
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import SmallBatches, cut, small_batches

TEXTS, ROWS, LEAST = 64, 256, 12
LONGEST, SHORTEST, FORWARDS = 128, 32, 3  # tokens of a text; forward passes of all texts
FEW_TEXTS, FEW_TOKENS, FEW_ROWS, FEWEST_ROWS = 3, 64, 64, 16
FIRST_LOOK, OF_WIDE, NEAR = (1, 24), 1.5, 14
"""Texts and tokens on which a large language model tries changes of all layers at once; the cost of
all these trials, in budgets of trials; most changes near the best one that are tried then."""
LEAD: Final = 0.03  # of a reference's accuracy or R^2, from which parts are tried
SCREEN, CLOSER, FINE_PART = 0.6, 0.85, 0.5  # parts of the budget; the last if answers are fine
LEAST_CHANGES: Final = 8
PARTS: Final = ("change of a part", "changes of parts")
CHEAP, BETTER = 200_000, 0.97  # weights of a small model, and an accuracy that is fine
KEPT: Final = 3
MORE_ROWS, SURE = (64, 128), 5e-4
HOPE: Final = 0.02
UNTRAINED: Final = 0.5
COUNTS: Final = "the model predicts better than counts of tokens"
PROBE: Final = "the model is as accurate as a probe of its layers"
ERRS: Final = "the model's error is no larger than that of a probe of its layers"
LARGE: Final = "not tried because the model is large; --deep tries changes to its parts"
FINE: Final = (COUNTS, PROBE, ERRS)


@dataclass(frozen=True, eq=False)
class PartTrials:
    """The change that lowers the loss most, judged on held-out rows.

    Parameters
    ----------
    change : PartChange or None
        None if no change lowered the loss of the rows that choose.
    given, changed : Float[Tensor, "row"]
        Loss of the other rows: with the temperature that suits the model best, and with the change.
    own : float
        Mean loss of these rows with the unchanged model.
    right, mended : float
        Share of their labels that the model names before and after; NaN without labels.
    p : float
        Of a signed rank test of the loss, groups of rows as units: the loss has heavy tails.
    unit : str
    of_tokens : bool
        Whether the rows are texts of a language model.
    n_tried : int
    trial : Trial or None
        Scores of the rows that judge: correct answers, errors, or the loss of texts.
    temperature : PartChange or None
        The factor on the logits that suits the unchanged model best.
    """

    change: PartChange | None
    given: Float[Tensor, "row"]
    changed: Float[Tensor, "row"]
    own: float
    right: float
    mended: float
    p: float
    unit: str
    of_tokens: bool
    n_tried: int
    trial: Trial | None = None
    temperature: PartChange | None = None


@counted
def part_trials(stream: LiveStream, evidence: Evidence) -> PartTrials | str:
    """Try changes to parts; return the best change, or the reason why none was tried."""
    reason, causal = _suffers(evidence), stream.model.task == "causal"
    model = evidence.get(read_modules)
    cheap = model is not None and model.n_parameters < CHEAP
    if reason and not (causal and reason == COUNTS) and not (cheap and _may_gain(evidence, reason)):
        return reason
    rows = TEXTS if causal else 3 * ROWS if cheap else ROWS  # a small gain takes more rows
    chosen = chosen_examples(stream, rows, evidence.data.seed)
    longest, least = (_longest(evidence), TEXTS // 2) if causal else (None, 0)
    small = small_batches(stream.model, stream.inputs, chosen, longest, least)
    small = replace(small, singles=small.singles[: TEXTS // 2] if causal else small.singles)
    if len(small) < 2 * LEAST:
        return f"needs {2 * LEAST} rows of one size"
    whole = small
    order = small.together(range(len(small))).order.tolist()
    scores = None if causal else answer_scores(stream, evidence, order)
    if isinstance(scores, str):
        return scores
    small = thinned(small, _affordable(evidence, small), evidence.data.seed)
    part = FINE_PART if reason else 1.0
    with untouched(stream.model.module), torch.no_grad():
        trials = _searched(stream, evidence, small, part, scores)
        if isinstance(trials, PartTrials) and trials.change is not None and trials.change.alone:
            trials = _on_more_rows(stream, evidence, whole, trials, scores)
    return trials


def _longest(evidence: Evidence) -> int:
    """Return how many tokens of a text the budget allows for selection and judgement."""
    n = TEXTS // 2
    return evidence.budget.rows(n * LONGEST, n * SHORTEST, FORWARDS, 1 - SCREEN) // n


def _affordable(evidence: Evidence, small: SmallBatches) -> int:
    """Return how many rows the budget allows for selection and judgement."""
    each = evidence.budget.cost.of(small.length or 1)
    able = evidence.budget.left() * (1 - SCREEN) / max(3 * each, 1e-9)
    return int(min(len(small), max(3 * LEAST, able)))  # about half of them judge


def _suffers(evidence: Evidence) -> str:
    """Return the reason to try nothing; empty if the answers are worse than possible."""
    if untrained_share(evidence) >= UNTRAINED:
        return "the whole model looks untrained"
    if reference_lead(evidence) > LEAD:
        return ""
    lens = evidence.get(measure_lens)
    if isinstance(lens, LensEvidence) and math.isfinite(lens.final):
        return COUNTS if lens.beats_counts else ""
    numbers, compared = number_answers(evidence), compared_answers(evidence)
    if not isinstance(numbers, str):
        spread = float(numbers.mean.mean())
        best = float(numbers.probes[numbers.best][1].mean())
        fine = float(numbers.own.mean()) < min(1.1 * best, spread) + 0.02 * spread
        return ERRS if fine else ""
    if isinstance(compared, str):
        return _of_heads(evidence) or compared
    reach = compared.majority
    if compared.labels is not None:
        reach = max(reach, compared.labels.sites[compared.labels.best].accuracy)
    error = math.sqrt(max(compared.accuracy * (1 - compared.accuracy), 0.01) / len(compared.truth))
    lags = compared.accuracy < reach - 3 * error or compared.accuracy < 0.9
    return "" if lags else PROBE


def _of_heads(evidence: Evidence) -> str:
    """Return the reason if trials can judge the several answers of a row, which have no probe."""
    heads = evidence.get(judge_heads)
    return PROBE if isinstance(heads, Heads) and len(heads.found) == 1 else ""


def _may_gain(evidence: Evidence, reason: str) -> bool:
    """Return whether a model that matches its probe has an accuracy or R^2 below 97 %."""
    if _of_heads(evidence) and isinstance(compared_answers(evidence), str):
        return True
    answers, numbers = class_answers(evidence), number_answers(evidence)
    if reason == ERRS and not isinstance(numbers, str):
        return float(numbers.own.mean()) > (1 - BETTER) * float(numbers.mean.mean())
    return reason == PROBE and not isinstance(answers, str) and answers.accuracy < BETTER


def _searched(
    stream: LiveStream,
    evidence: Evidence,
    small: SmallBatches,
    part: float,
    scores: AnswerScores | None,
) -> PartTrials | str:
    runs = _Runs(stream, evidence, small, scores)
    first_half = chooses_by_key([key for one in small.singles for key in one.group_keys])
    even, odd = (torch.nonzero(half).flatten().tolist() for half in (first_half, ~first_half))
    if min(len(even), len(odd)) < LEAST:
        return f"needs {LEAST} rows to choose a change and {LEAST} others to test it"
    names = stream.probe.names
    ran = {n: m for n, m in names.modules.items() if n and stream.probe.calls(n) == 1}
    every, budget = [*part_changes(stream), *weight_changes(ran)], evidence.budget
    length = small.length or 1
    rows = budget.rows(FEW_ROWS * length, FEWEST_ROWS * length, len(every), SCREEN * part) // length
    few = runs.few(even[:rows])
    able = int(min(len(every), budget.left(SCREEN * part) / max(1.0, few.cost)))
    wide = [change for change in every if change.turn or change.alone]
    if runs.causal and able < len(wide):
        return _of_all_layers(runs, even, odd, every)
    first = every[:able]
    if able < min(LEAST_CHANGES, len(every)):  # these were chosen by weights: a few passes
        first = [change for change in every if change.alone]
    budget.leave_out(PARTS, len(every) - len(first))
    if not first:
        return LARGE
    own = few.logits(few.every)
    if own is None:
        return "the model's answers to a few rows are not known"
    temperature = few.temperature(own, few.every)
    reference = float(few.loss_of(temperature, own, few.every).mean())
    with budget.bar(PARTS, len(first)) as bar:
        tried = _sorted_by_loss(few, first, bar)
    hopes = [t for t in tried if t[0] < (1 - HOPE) * reference]
    if not hopes:  # the other rows have nothing to judge
        return _judged(few, few.every, None, temperature, len(first))
    tried = hopes[:KEPT]
    closer = [c for _, one in tried for c in (one, *(one.near() if one.near else ()))]
    closer = _nearest(runs, few, even, closer, part)
    means = [(runs.mean(change, even), change) for change in closer]
    best = min(means, key=lambda t: t[0], default=(math.inf, None))[1]
    temperature = runs.temperature(runs.logits(even), even)
    return _judged(runs, odd, best, temperature, len(first) + len(closer))


def _of_all_layers(
    runs: "_Runs", even: Sequence[int], odd: Sequence[int], every: Sequence[PartChange]
) -> PartTrials | str:
    """Try the changes of all layers at once of a large language model, beside the other trials.

    What a wrong configuration costs is seen in every text: a few tokens show what undoes it, and
    more texts are read only if there is hope.
    """
    wide = sorted((c for c in every if c.turn or c.alone), key=lambda c: (not c.alone, c.turn))
    whole = runs.evidence.budget
    budget, few, more = whole.beside(OF_WIDE), runs.few(even, *FIRST_LOOK), runs.few(even)
    first = wide[: int(budget.left() / max(1.0, few.cost))]
    whole.leave_out(PARTS, len(every) - len(first))
    if not first:
        return LARGE
    with budget.counting():
        own = few.logits(few.every)
        if own is None:
            return "the model's answers to a few rows are not known"
        temperature = few.temperature(own, few.every)
        least = (1 - HOPE) * float(few.loss_of(temperature, own, few.every).mean())
        with budget.bar(PARTS, len(first)) as bar:
            tried = _sorted_by_loss(few, first, bar)
        best = [change for loss, change in tried[:KEPT] if loss < least]
        if not best:
            return _judged(few, few.every, None, temperature, len(first))
        near = best[0].near
        if near is not None:
            tried = _sorted_by_loss(few, near()[:NEAR])
            best += [change for loss, change in tried[:KEPT] if loss < least]
        best = [change for _, change in _sorted_by_loss(more, best)]
        temperature = runs.temperature(runs.logits(even), even)
        return _judged(runs, odd, best[0], temperature, len(first))


def _sorted_by_loss(
    runs: "_Runs", changes: Sequence[PartChange], bar: Bar | None = None
) -> list[tuple[float, PartChange]]:
    """Return the changes with the mean loss of all rows, the least loss first."""
    tried: list[tuple[float, PartChange]] = []
    for change in changes:
        tried.append((runs.mean(change, runs.every), change))
        if bar is not None:
            bar.advance(1)
    return sorted(tried, key=lambda t: t[0])


def _judged(
    runs: "_Runs",
    odd: Sequence[int],
    best: PartChange | None,
    temperature: PartChange,
    n_tried: int,
) -> PartTrials:
    """Return the effect of a change on the held-out rows."""
    own = runs.logits(odd)
    given = runs.loss_of(temperature, own, odd)
    plain = runs.loss_of(answers_scaled(1.0), own, odd)
    changed = None if best is None else runs.logits(odd, best)
    if best is None or own is None or changed is None or not runs.keeps_order(best):
        nan = math.nan
        return PartTrials(
            None, given, given, float(plain.mean()), nan, nan, 1.0, "", runs.causal, n_tried
        )
    loss = runs.loss_of(best, changed, odd)
    group = words_of(runs.small.together(odd).group_keys)
    return PartTrials(
        change=best,
        given=given,
        changed=loss,
        own=float(plain.mean()),
        right=runs.right(own, odd),
        mended=runs.right(changed, odd),
        p=chance_of_gain(-given, -loss, group),
        unit="nats per token" if runs.causal else runs.unit,
        of_tokens=runs.causal,
        n_tried=n_tried,
        trial=runs.trial(best, odd, (own, plain), (changed, loss)),
        temperature=temperature,
    )


def _on_more_rows(
    stream: LiveStream,
    evidence: Evidence,
    whole: SmallBatches,
    trials: PartTrials,
    scores: AnswerScores | None,
) -> PartTrials:
    """Judge a promising change on more rows, with two more forward passes.

    Few trials leave few rows for the judgement of a large model: hope alone is not enough.
    """
    first_half = chooses_by_key([key for one in whole.singles for key in one.group_keys])
    odd = torch.nonzero(~first_half).flatten().tolist()
    runs = _Runs(stream, evidence, whole, scores)
    for n in MORE_ROWS:
        hopeful = float(trials.changed.mean()) < (1 - HOPE) * float(trials.given.mean())
        done = trials.p < SURE or len(trials.given) >= min(n, len(odd)) or not hopeful
        if done or trials.temperature is None or trials.change is None:
            break
        trials = _judged(runs, odd[:n], trials.change, trials.temperature, trials.n_tried)
    return trials


def _nearest(
    runs: "_Runs", few: "_Runs", even: Sequence[int], changes: list[PartChange], part: float
) -> list[PartChange]:
    """Return the changes to try on all selection rows: those that were best on a few rows."""
    budget = runs.evidence.budget
    able = int(
        min(len(changes), budget.left(part) / max(runs.cost * len(even) / len(runs.small), 1))
    )
    if len(changes) <= max(able, KEPT):
        return changes
    first = changes[: int(min(len(changes), budget.left(CLOSER * part) / max(few.cost, 1.0)))]
    budget.leave_out(PARTS, len(changes) - len(first))
    ranked = sorted((few.mean(change, few.every), i) for i, change in enumerate(first))
    able = int(budget.left(part) / max(runs.cost * len(even) / len(runs.small), 1))
    return [first[i] for _, i in ranked[: max(able, 1)]] or changes[:1]


class _Runs:
    """Forward passes of a few rows, and the losses of their answers."""

    def __init__(
        self,
        stream: LiveStream,
        evidence: Evidence,
        small: SmallBatches,
        scores: AnswerScores | None,
    ) -> None:
        self.stream, self.small, self.evidence = stream, small, evidence
        self.scores, self.causal = scores, scores is None
        of_numbers = scores is not None and scores.kind == "numbers"
        self.unit = "times the variance of the targets" if of_numbers else "nats"

    @property
    def every(self) -> list[int]:
        """All rows."""
        return list(range(len(self.small)))

    @property
    def cost(self) -> float:
        """Number of operations of a forward pass of all rows."""
        return self.evidence.budget.cost.of(len(self.small) * (self.small.length or 1))

    def few(
        self, which: Sequence[int], n_texts: int = FEW_TEXTS, n_tokens: int = FEW_TOKENS
    ) -> "_Runs":
        """Return the runs of a few of these rows, with texts cut to fewer tokens."""
        kept = which[: n_texts if self.causal else FEW_ROWS]
        singles = tuple(
            cut(self.small.singles[i], n_tokens) if self.causal else self.small.singles[i]
            for i in kept
        )
        return _Runs(self.stream, self.evidence, replace(self.small, singles=singles), self.scores)

    def logits(self, which: Sequence[int], change: PartChange | None = None) -> Tensor | None:
        """Return the logits of rows; None if the changed model cannot run."""
        batch = self.small.together(which)
        try:
            return self._run(batch, change)
        except CANNOT_RUN:
            if change is None:
                raise
            return None

    def _run(self, batch: InputBatch, change: PartChange | None) -> Tensor | None:
        around = None if change is None else change.around()
        place = self.stream.probe.place
        output = watch(self.stream.model.module, batch, (), around=around, place=place).output
        if self.scores is not None:
            return self.scores.of(output)
        logits = find_logits(output)
        return None if logits is None or logits.ndim != 3 else logits.cpu()

    def mean(self, change: PartChange, which: Sequence[int]) -> float:
        """Return the mean loss of rows under a change; infinite if the model cannot run."""
        logits = self.logits(which, change)
        loss = math.inf if logits is None else float(self.loss_of(change, logits, which).mean())
        return loss if math.isfinite(loss) else math.inf

    def loss_of(
        self, change: PartChange, logits: Tensor | None, which: Sequence[int]
    ) -> Float[Tensor, "row"]:
        """Return the loss of each row."""
        assert logits is not None
        batch = self.small.together(which)
        if self.scores is not None:
            return self.scores.losses(change.factor * logits.double(), batch.order)
        texts = zip(logits, ids_of(batch), strict=True)  # a text at a time: words are many
        return torch.stack(
            [cross_entropy(change.factor * x[:-1].double(), ids[1:]) for x, ids in texts]
        )

    def temperature(self, logits: Tensor | None, which: Sequence[int]) -> PartChange:
        """Return the factor on the logits with the least loss."""
        tried = {f: answers_scaled(f) for f in (1.0, *grid(0.05, 20, 25))}

        def loss(factor: float) -> float:
            return float(self.loss_of(tried[factor], logits, which).mean())

        return tried[least_convex(loss, tried, 1.0)]

    def right(self, logits: Tensor | None, which: Sequence[int]) -> float:
        """Return the accuracy on these rows; NaN without labels."""
        if self.scores is None or self.scores.kind == "numbers" or logits is None:
            return math.nan
        return float(self.scores.scores(logits, self.small.together(which).order).mean())

    def trial(
        self,
        change: PartChange,
        which: Sequence[int],
        before: tuple[Tensor, Tensor],
        after: tuple[Tensor, Tensor],
    ) -> Trial:
        """Return the trial of a change from answers and losses on held-out rows."""
        batch = self.small.together(which)
        group = words_of(batch.group_keys)
        words, scope = change.words, "part" if change.paths != ("logits",) else "answers"
        if self.scores is None:
            return Trial(words, scope, "loss", batch.order, -before[1], -after[1], group=group)
        given = worst_misfit(self.stream, batch)
        changed = given if math.isnan(given) else worst_misfit(self.stream, batch, change.around())
        scored = [self.scores.scores(x, batch.order) for x in (before[0], after[0])]
        nats = None
        if self.scores.kind == "class":
            half = torch.arange(len(which)) % 2 == 0
            nats = crossed_loss(after[0], batch.label, half)
            nats = after[1] if nats is None else nats
        measure = self.scores.measure
        return Trial(
            words, scope, measure, batch.order, *scored, nats=nats, group=group,
            misfit=misfit_after(given, changed),
        )  # fmt: skip

    def keeps_order(self, change: PartChange) -> bool:
        """Return whether a changed language model still cannot see later tokens."""
        length = self.small.length
        if not self.causal or length is None:
            return True
        half = length // 2
        small = replace(self.small, singles=self.small.singles[:LEAST])
        batches = small.together(range(len(small))), small.other_endings(half)
        a, b = (self._run(batch, change) for batch in batches)
        return a is not None and b is not None and torch.allclose(
            a[:, :half], b[:, :half], atol=1e-3 * float(a.std())
        )  # fmt: skip
