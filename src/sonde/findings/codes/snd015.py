"""SND015: inputs in another form than in training."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binom
from torch import Tensor

from sonde.core.paired_gains import gains_and_losses, sign_test
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import groups_at
from sonde.findings.evidence.trials.answer_scores import AnswerScores, line_does_as_well
from sonde.findings.evidence.trials.batch_norm_fits import MISFIT, misfit_after
from sonde.findings.evidence.trials.held_columns import held_column
from sonde.findings.evidence.trials.input_trials import VariantEvidence, variant_evidence
from sonde.findings.evidence.trials.mended_rows import MendedRows
from sonde.findings.evidence.trials.restored_rows import RestoredRows, restored_rows
from sonde.findings.evidence.trials.rivals import does_as_well
from sonde.findings.evidence.trials.stored_columns import OffColumn, StoredColumns
from sonde.findings.evidence.trials.tempered_loss import cooled_loss, crossed_loss
from sonde.findings.evidence.trials.tensor_trials import TensorTrials, tensor_trials
from sonde.findings.evidence.trials.tried_forms import Tried
from sonde.findings.rule import (
    SERIOUS,
    Breaks,
    Check,
    Explains,
    Figure,
    Level,
    Location,
    Rule,
    Theme,
)
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import LEVEL, Trial, chance_of_gain, is_beyond
from sonde.findings.words.places import sentence
from sonde.findings.words.step import Step
from sonde.findings.words.text import listed, number, percent, plural, shortened

LEAST_JUDGES = 8


@final
@dataclass(frozen=True)
class SND015(Rule):
    """Accuracy gained by giving the model the same inputs in another form."""

    level: float = 0.001
    part: float = 0.5
    whole: float = 0.95
    most: float = 0.65
    sure: float = 0.8
    blind: float = 0.3
    near: float = 0.6
    rival: float = 0.15
    fall: float = 0.1
    rivals: float = 0.9
    gain: float = 0.03
    gain_of_numbers: float = 0.05
    lost: float = 0.15

    title: ClassVar[str] = "Inputs in another form than in training"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("near chance", "worse in production", "below probe")
    breaks: ClassVar[Breaks] = "all answers"
    before_constants: ClassVar[bool] = True
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND068", "SND069", "SND070"), levels=SERIOUS),
        Explains(("SND012", "SND037", "SND039", "SND046", "SND061", "SND062", "SND063", "SND064")),
    )
    why: ClassVar[str] = (
        "Inputs that are scaled, rotated or ordered differently than in training give wrong "
        "answers without an error."
    )
    fix: ClassVar[str] = "Prepare the inputs in the form that the finding names."
    how: ClassVar[str] = (
        "Tested if the model is far less accurate than the best linear probe of a layer, wrong "
        "on a tenth of the rows, or if the first batch norm does not fit (SND012). Up to 128 "
        "rows are run again in other forms: divided by 255, rescaled to 0..1, to -1..1 or to "
        "mean 0 and variance 1, inverted, mirrored, rotated, with reversed channels or moved "
        "columns, with one named column in another unit, with two columns exchanged, ... If the "
        "best form stays below the best probe, all forms are tried on top of the three best ones; "
        "such a pair must surpass the single form on rows that chose neither (1 %), and constants "
        "on the logits (which give less than two thirds of the gain, or a log loss a tenth "
        "higher, 1 %). Raised "
        "if one form closes half of the gap to the probe (a regression: reaches 95 % of the "
        "probe's R^2, less 0.05) and corrects more rows than it spoils (sign test, 0.1 %, "
        "corrected for the forms tried). If at least 15 rows are wrong (regressions: off by two "
        "thirds of the targets' standard deviation and by three robust standard deviations of "
        "the errors), these rows are also tried separately, and a third of them choose the "
        "form. The form is reported if it corrects 65 % of the other wrong rows (sign test "
        "against 30 %, 0.1 %) and moves three fifths of their states nearer to those of correct "
        "rows, more than it moves correct rows (Mann-Whitney, 0.1 %), unless a constant on the "
        "logit of one class, chosen in the same way, corrects about as many rows. A form that "
        "does not move the states nearer must fit all rows: it is reported if it removes half "
        "of the errors, after deduction of the rows that it spoils, and is not a scale. If no "
        "form corrects enough answers, the log loss of the held-out rows, at the best "
        "temperature of each form, must be a tenth below that of the unchanged inputs (signed "
        "ranks, 0.1 %), accuracy must not fall, and the best bias of one class with unchanged "
        "inputs must not give a loss a tenth lower still. Forms after which batch norms fit their "
        "inputs again are not compared with constants, which move no state. The columns of a "
        "table are compared with the mean and standard deviation that the model stores (in a "
        "batch norm, or in two buffers as wide as the table): a column is reported if its mean "
        "lies two stored standard deviations away, or if its standard deviation is at most a "
        "quarter or at least four times the stored one, while most columns fit (not by its "
        "standard deviation if its tail index is below 2); then the unit, curve or exchange of "
        "columns that makes it fit is tried. Columns of whole numbers are named first if no whole "
        "numbers have the stored mean and deviation (variance below 0.5 f (1 - f), with f behind "
        "the point of the mean): they were rounded or cut. Without labels, a form is reported if "
        "it removes three quarters of the first batch norm's misfit and leaves less than 0.125 "
        "nats. Inputs of a row up to 3 rows before or after are tried if a line through the "
        "answers (of classes: a temperature) would lower the loss by 0.05: the nearest row that "
        "removes two thirds of this regret (Student's test over blocks of rows, 1 %). Newer inputs "
        "make a forecast better although nothing is wrong; they do not leave less regret. "
        "Every column and channel is also held at its median, and further ones with it while each "
        "corrects a tenth of what is left wrong (1 %, corrected for the columns tried): if a form "
        "leaves more than two thirds of what is wrong then, these columns are named instead, with "
        "no cause, since a small factor makes noise smaller, too. If a form of other columns or "
        "tensors does as well on the rows that chose neither (not worse at 5 %, and a log loss at "
        "most a ninth higher), both are named, and neither is the cause. "
        "Last, the wrong rows of "
        "any model that is right more often than by chance (10 %; of maps: with a tenth of their "
        "pixels wrong and far more than most rows) are tried in the forms of each input tensor. "
        "The form is reported if it corrects 65 % of those that did not choose it and moves their "
        "inputs nearer to those of correct rows, a warning if it corrects 80 % (more than two "
        "classes) or if usual values in the place of the changed ones correct as many, unless a "
        "constant answer does."
    )
    false_positives: ClassVar[str] = "By chance, a form can help as often as the stated level says."
    plant: ClassVar[str] = "A net for pixels in -1..1 over pixels in 0..255."
    twin: ClassVar[str] = "The same net over pixels in -1..1."

    def check(self, evidence: Evidence) -> Check:
        """Search for a form of the inputs on which the model is more accurate."""
        variants = evidence.get(variant_evidence)
        if not isinstance(variants, VariantEvidence):
            return self.not_applicable("no model was run")
        check = self._of_all_rows(evidence, variants)
        if variants.stored is not None:
            check = self._of_stored(evidence, variants, variants.stored, check)
        for mended in variants.mended:
            if check.state == "clear":
                check = self._of_some_rows(mended, check)
        for mended in reversed(variants.mended):
            if check.state == "clear":
                check = self._of_wrong_rows(mended, check)
        if check.state == "clear":
            check = self._of_tensors(evidence, check)
        elif check.finding is not None and check.finding.level == "warning":
            tensors = self._of_tensors(evidence, check)
            check = tensors if _does_more(tensors, check) else check
        if check.state == "clear":
            check = self._of_restored(evidence, check)
            return self._of_held(evidence, check) if check.state == "clear" else check
        return self._of_held(evidence, check)

    def _of_held(self, evidence: Evidence, other: Check) -> Check:
        """Judge the column that gains most if it is held, unless another form does far better."""
        held = evidence.get(held_column)
        if not isinstance(held, TensorTrials):
            return other
        rival = None if other.finding is None else other.finding.trial
        if rival is not None and is_beyond(rival, held.trial):
            return other
        trial, numbers = held.trial, held.trial.measure == "error"
        own, then, n = float(trial.before.mean()), float(trial.after.mean()), len(trial.rows)
        figure = self._gained(trial)
        columns = "this column" if len(held.form.columns) == 1 else "these columns"
        what = "R^2 of" if numbers else "correct on"
        # a form that was raised proves a fault of the inputs: these rows only choose its words
        is_sure = trial.p < self.level or (
            other.finding is not None and min(trial.p, held.p_of_loss) < LEVEL
        )
        if held.is_like_constants or not is_sure or not self._is_large(trial, figure):
            without = f"{what} {_figure(then, numbers)} of {plural(n, 'row')}"
            return other if rival is None else _without_trial(other, (
                f"Look where the values of {columns} come from, too: the rows cannot tell this "
                f"form from one with the inputs {held.form.words} ({without})."
            ))  # fmt: skip
        before, after = (_reached(score, numbers) for score in (own, then))
        text = (
            f"With its inputs {held.form.words}, the model {after} on {plural(n, 'row')} held out "
            f"from this choice; with unchanged inputs, it {before}. The values of {columns} do "
            "not fit the model, and no other form of the inputs does much better."
        )
        return self.raised_with(
            "error" if trial.gain >= self.part * (1 - own) else "warning",
            sentence(text),
            figure,
            effect=min(1.0, trial.gain),
            fix=f"Look where the values of {columns} come from: they may be noise, of other "
            "rows or of another source, or an overfitted model has learned chance from them. "
            f"Without them, {what} {_figure(then, numbers)} instead of "
            f"{_figure(own, numbers)}.",
            trial=trial,
            location=Location(tensors=held.form.tensors, columns=held.form.columns),
        )

    def _gained(self, trial: Trial) -> Figure:
        """Return the gain of a form of one input tensor beside the least gain that counts."""
        own, numbers = float(trial.before.mean()), trial.measure == "error"
        least = max(self.gain_of_numbers if numbers else self.gain, self.lost * (1 - own))
        return Figure(
            "gain", trial.gain, unit="share", null=0.0, p=trial.p, n_rows=len(trial.rows),
            threshold=least,
        )  # fmt: skip

    def _is_large(self, trial: Trial, figure: Figure) -> bool:
        assert figure.threshold is not None
        is_useful = trial.measure != "error" or float(trial.after.mean()) > 0
        return trial.gain >= figure.threshold and is_useful

    def _of_restored(self, evidence: Evidence, clear: Check) -> Check:
        """Judge the form of any input tensor that corrects most of the wrong rows."""
        rows = evidence.get(restored_rows)
        if not isinstance(rows, RestoredRows):
            return clear
        blind = max(self.blind, 1 / rows.n_classes if rows.n_classes else 0.0)
        lucky = float(binom.sf(round(rows.right * rows.n) - 1, rows.n, blind))
        is_near = rows.nearer >= self.near and rows.p < self.level
        is_form = rows.without < rows.right - self.rival
        least = self.most if is_near and is_form else self.sure
        figure = Figure(
            "mended", rows.right, unit="share", null=0.0, p=lucky, n_rows=rows.n, threshold=least
        )  # fmt: skip
        if rows.right < least or lucky >= self.level or (rows.n_classes == 2 and not is_near):
            return clear
        if rows.constant >= rows.right - self.rival:
            return clear
        words = rows.form.words if is_form else f"with usual values of {rows.place}"
        text = (
            f"Of {plural(rows.n, 'row')} that the model gets wrong, it is correct on "
            f"{percent(rows.right if is_form else rows.without)} with its inputs {words}: at "
            f"least {percent(rows.right * rows.wrong)} of all rows are given in another form."
        )
        fix = f"the model gets {percent(rows.wrong)} of all rows wrong now."
        return self.raised_with(
            "error" if is_near and is_form else "warning",
            sentence(text),
            figure,
            examples=rows.rows,
            effect=rows.right,
            fix=f"Give these rows alone the inputs {rows.form.words}: {fix}"
            if is_form
            else f"Look where the values of {rows.place} come from: {fix}",
            trial=rows.trial if is_near and is_form else None,
            location=Location(tensors=rows.form.tensors, columns=rows.form.columns),
        )

    def _of_tensors(self, evidence: Evidence, clear: Check) -> Check:
        """Judge the form of one input tensor that the selection rows chose."""
        tried = evidence.get(tensor_trials)
        if not isinstance(tried, TensorTrials):
            return clear
        trial, numbers = tried.trial, tried.trial.measure == "error"
        own, then, n = float(trial.before.mean()), float(trial.after.mean()), len(trial.rows)
        figure = self._gained(trial)
        if trial.p >= self.level or not self._is_large(trial, figure):
            return self.clear(figure, f"none of {tried.n_tried:,} forms of the inputs does better")
        before, after = (_reached(score, numbers) for score in (own, then))
        text = (
            f"With its inputs {tried.form.words}{_or(trial)}, the model {after} on "
            f"{plural(n, 'row')} held out from this choice; with unchanged inputs, it {before}."
        )
        is_whole = trial.gain >= self.part * (1 - own)
        what = "R^2 of" if numbers else "correct on"
        fix = f": {what} {_figure(then, numbers)} instead of {_figure(own, numbers)}."
        fix += _or_fix(trial)
        return self.raised_with(
            "error" if is_whole else "warning",
            sentence(text),
            figure,
            effect=min(1.0, trial.gain),
            fix=f"{_for_paste(tried.form.line)}{fix}",
            trial=trial,
            location=Location(
                tensors=tried.form.tensors,
                columns=tried.form.columns,
                answers=not tried.form.tensors,  # other rows: inputs and targets do not meet
            ),
        )

    def _of_all_rows(self, evidence: Evidence, found: VariantEvidence) -> Check:
        if not found.tried:
            return self.clear(Figure("gain", 0.0), "there was no reason to try other forms")
        given, *others = found.tried
        if given.score is not None:
            return self._by_answers(evidence, found, given)
        return self._by_norm(evidence, found, given, others)

    def _by_answers(self, evidence: Evidence, found: VariantEvidence, given: Tried) -> Check:
        assert given.score is not None
        best, judge = found.best, ~found.chooses
        if best is None or best.score is None or int(judge.sum()) < LEAST_JUDGES:
            return self.clear(Figure("gain", 0.0), "too few rows to choose a form and to test it")
        trial = _trial(evidence, found.rows, found.chooses, (given, best), found.rival)
        if trial is None:
            return self.clear(
                Figure("gain", 0.0), "the answers to inputs in this form are not known"
            )
        reach = 1.0 if math.isnan(found.probe) else found.probe
        own, gain, n = float(trial.before.mean()), trial.gain, len(trial.rows)
        p = sign_test(*gains_and_losses((trial.after - trial.before).double(), trial.group))
        figure = Figure(
            "gain", gain, unit="share", null=0.0, p=p, n_rows=n,
            threshold=self.part * max(0.0, reach - own),
        )  # fmt: skip
        numbers = evidence.data.target is not None
        assert figure.threshold is not None
        least = max(own + figure.threshold, max(self.whole * reach - 0.05, 0.1) if numbers else 0.0)
        if gain <= 0 or p >= self.level or own + gain < least:
            return self._by_loss(evidence, found, (given, best), trial, self.clear(figure))
        if _is_like_line(evidence, found, given, best):
            return self.clear(figure, "a line through the answers does as well")
        losses = None if trial.misfit == "gone" else _losses(evidence, found, (given, best))
        if losses is not None and float(losses[2].mean()) < self.rivals * float(losses[1].mean()):
            return self.clear(figure, "a bias on the logit of one class corrects more")
        before, after, most = (_reached(x, numbers) for x in (own, own + gain, found.probe))
        probe = "" if math.isnan(found.probe) else f"; the best probe of its layers {most}"
        text = (
            f"With its inputs {best.words}{_or(trial)}, the model {after} on "
            f"{plural(n, 'row')} held out from this choice; with unchanged inputs, it "
            f"{before}{probe}."
        )
        whole = math.isnan(found.probe) or own + gain > reach - 0.1
        text = text if whole else f"{text[:-1]}: this fault explains some of the errors, not all."
        then, now = (_figure(x, numbers) for x in (own + gain, own))
        fix = f": {'R^2 of' if numbers else 'correct on'} {then} instead of {now}.{_range(best)}"
        fix += _or_fix(trial)
        level: Level = "error" if whole else "warning"
        check = self._raised(text, figure, best, fix, level, trial, found.tensor)
        return _at_rival(check, found.rival) if trial.rival else check

    def _by_loss(
        self,
        evidence: Evidence,
        found: VariantEvidence,
        pair: tuple[Tried, Tried],
        trial: Trial,
        clear: Check,
    ) -> Check:
        """Judge a form by the log loss if it corrects too few answers for a sign test.

        Rows cannot tell such a form from a bias of one class if that lowers the loss as much; the
        sentence says so then.
        """
        losses = _losses(evidence, found, pair)
        if losses is None or trial.gain < 0:
            return clear
        before, after, biased = losses
        own, then = float(before.mean()), float(after.mean())
        p = chance_of_gain(-before, -after, trial.group)
        fall = 1 - then / own if own > 0 else 0.0
        figure = Figure(
            "loss_fall", fall, unit="share", null=0.0, p=p, n_rows=len(before), threshold=self.fall
        )  # fmt: skip
        rival = float(biased.mean())
        is_biased = trial.misfit != "gone" and rival < self.rivals * then
        if fall < self.fall or p >= self.level or is_biased:
            return clear
        right, now = (percent(float(x.mean())) for x in (trial.after, trial.before))
        text = (
            f"With its inputs {pair[1].words}{_or(trial)}, the model's log loss is "
            f"{number(then, 2)} nats instead of {number(own, 2)} on "
            f"{plural(len(before), 'row')} held out from this choice, at the best temperature; "
            f"accuracy {right} instead of {now}."
        )
        if chance_of_gain(-biased, -after, trial.group) >= 0.01:
            text += (
                f" A bias of one class gives {number(rival, 2)} nats with unchanged inputs: these "
                "rows cannot decide between them."
            )
        fix = f": log loss {number(then, 2)} nats instead of {number(own, 2)}.{_range(pair[1])}"
        fix += _or_fix(trial)
        return self._raised(text, figure, pair[1], fix, "warning", trial, found.tensor)

    def _of_stored(
        self, evidence: Evidence, found: VariantEvidence, stored: StoredColumns, other: Check
    ) -> Check:
        """Judge columns whose mean and standard deviation differ from those stored in the model.

        A form that rows chose is kept if it corrects more answers than these columns put right. No
        form brings back what columns of rounded numbers have lost.
        """
        if stored.cut:
            return self._of_cut(evidence, stored)
        trial, best = None, None
        if len(found.restored) == 2:
            best = found.restored[1]
            order, chooses = found.judged
            trial = _trial(evidence, order, chooses, (found.restored[0], best))
        rival = None if other.finding is None else other.finding.trial
        if rival is not None and rival.holds and (trial is None or trial.gain < rival.gain - 0.05):
            return other
        figure = Figure(
            "columns_off", len(stored.off) / stored.n_columns, unit="share", null=0.0,
            threshold=0.0, n_rows=evidence.data.n,
        )  # fmt: skip
        first = stored.off[0]
        text = (
            f"{shortened(first.name, 30)} has mean {number(first.found[0])} and standard deviation "
            f"{number(first.found[1])}; the model has stored {number(first.stored[0])} and "
            f"{number(first.stored[1])} ({stored.where}); "
            f"{stored.n_fit} of {plural(stored.n_columns, 'column')} fit."
        )
        if len(stored.off) > 1:
            text += (
                " Other columns that differ: "
                f"{listed([shortened(c.name, 30) for c in stored.off[1:4]])}."
            )
        if best is None or trial is None:
            fix = f"Give {first.name} in the unit and column position of the training table"
            if best is not None:
                fix = f"{_asked(best)}: then these columns fit the stored statistics"
            return self.raised_with(
                "warning", sentence(text), figure, effect=figure.value, fix=f"{fix}.",
                location=_at(evidence, stored.off, stored.n_columns),
            )  # fmt: skip
        numbers = evidence.data.target is not None
        then, now = (_figure(float(x.mean()), numbers) for x in (trial.after, trial.before))
        what = "R^2" if numbers else "accuracy"
        text += (
            f" With its inputs {best.words}, {what} is {then} instead of {now} "
            f"({plural(len(trial.rows), 'row')})."
        )
        return self.raised_with(
            "error" if trial.holds else "warning",
            sentence(text),
            figure,
            effect=max(figure.value, min(1.0, trial.gain)),
            fix=f"{_asked(best)}: {what} {then} instead of {now}.",
            trial=trial if trial.holds else None,
            location=_at(evidence, stored.off, stored.n_columns),
        )

    def _of_cut(self, evidence: Evidence, stored: StoredColumns) -> Check:
        """Name the columns that were rounded or cut to whole numbers."""
        first, n = stored.cut[0], len(stored.cut)
        figure = Figure(
            "columns_off", n / stored.n_columns, unit="share", null=0.0, threshold=0.0,
            n_rows=evidence.data.n,
        )  # fmt: skip
        names = listed([shortened(c.name, 30) for c in stored.cut])
        have = "has" if n == 1 else "have"
        text = (
            f"{n} of {plural(stored.n_columns, 'column')} {have} whole numbers alone: {names}. Of "
            f"{shortened(first.name, 30)} the model has stored mean {number(first.stored[0])} and "
            f"standard deviation {number(first.stored[1])} ({stored.where}), which no whole "
            "numbers have: they were rounded or cut."
        )
        return self.raised_with(
            "error" if 4 * n >= stored.n_columns else "warning",
            sentence(text),
            figure,
            effect=figure.value,
            fix="Read these columns as floating-point numbers: look for .astype(int), // and "
            "integer columns of a data base. No change of the inputs brings back what was lost.",
            location=_at(evidence, stored.cut, stored.n_columns),
        )

    def _of_some_rows(self, found: MendedRows, clear: Check) -> Check:
        """Judge the form that corrects most of the rows that the model gets wrong."""
        lucky = float(binom.sf(round(found.right * found.n) - 1, found.n, self.blind))
        p = max(lucky, found.p)
        figure = Figure(
            "mended", found.right, unit="share", null=0.0, p=p, n_rows=found.n, threshold=self.most
        )  # fmt: skip
        if found.right < self.most or found.nearer < self.near or p >= self.level:
            return clear
        if found.offset >= found.right - self.rival:
            return self.clear(figure, "a bias on the logit of one class corrects as many rows")
        text = (
            f"Of {plural(found.n, 'row')} that the model gets wrong, it is correct on "
            f"{percent(found.right)} with the inputs {found.form.words}: at least "
            f"{percent(found.right * found.wrong)} of all rows are given in another form."
        )
        fix = (
            f". Do so for these rows alone: the model gets {percent(found.wrong)} of all rows "
            "wrong now."
        )
        fix += _range(found.form)
        form = replace(found.form, scale=None, code="")  # their code would change all rows
        tried = found.trial("some inputs")
        return self._raised(text, figure, form, fix, trial=tried, tensor=found.tensor)

    def _of_wrong_rows(self, found: MendedRows, clear: Check) -> Check:
        """Judge the form that corrects wrong answers and keeps the correct ones."""
        before, after = 1 - found.wrong, found.right * found.wrong + found.kept * (1 - found.wrong)
        gain = after - before
        lucky = float(binom.sf(round(found.right * found.n) - 1, found.n, self.blind))
        figure = Figure(
            "gain", gain, unit="share", null=0.0, p=lucky, n_rows=found.n,
            threshold=self.part * found.wrong,
        )  # fmt: skip
        if found.right < self.most or gain < self.part * found.wrong or lucky >= self.level:
            return clear
        if found.form.scale is not None:  # larger inputs drown any bias of the model
            return self.clear(figure, "scaling the inputs corrects a bias equally well")
        if found.offset >= found.right - self.rival:
            return self.clear(figure, "a bias on the logit of one class corrects as many rows")
        text = (
            f"With its inputs {found.form.words}, the model is correct on {percent(found.right)} "
            f"of the {plural(found.n, 'row')} that it gets wrong with unchanged inputs, and "
            f"stays correct on {percent(found.kept)} of the others."
        )
        fix = f": accuracy about {percent(after)} instead of {percent(before)}."
        fix += _range(found.form)
        tried = found.trial("inputs")
        return self._raised(text, figure, found.form, fix, "warning", tried, found.tensor)

    def _by_norm(
        self, evidence: Evidence, found: VariantEvidence, given: Tried, others: list[Tried]
    ) -> Check:
        with_misfit = [t for t in others if not math.isnan(t.misfit)]
        best = min(with_misfit, key=lambda t: t.misfit, default=None)
        if best is None or math.isnan(given.misfit):
            return self.clear(
                Figure("gain", 0.0), "neither the answers nor the norms distinguish the forms"
            )
        figure = Figure(
            "misfit_left", best.misfit, unit="nats", null=0.0, n_rows=found.n_rows,
            threshold=MISFIT, direction="below",
        )  # fmt: skip
        if best.misfit >= min(MISFIT, given.misfit / 4):
            return self.clear(figure)
        text = (
            f"With the inputs {best.words}, the first norm, {found.norms[0].path}, receives the "
            f"distribution that it was trained on (divergence {number(best.misfit)} nats), with "
            f"unchanged inputs it does not ({number(given.misfit)} nats; "
            f"{plural(found.n_rows, 'row')})."
        )
        fix = f": then the inputs of {found.norms[0].path} are distributed as in training."
        return self._raised(text, figure, best, fix, tensor=found.tensor)

    def _raised(
        self,
        text: str,
        figure: Figure,
        best: Tried,
        fix: str,
        level: Level = "error",
        trial: Trial | None = None,
        tensor: str = "",
    ) -> Check:
        return self.raised_with(
            level,
            sentence(text),
            figure,
            effect=1.0 if figure.name == "misfit_left" else min(1.0, figure.value),
            next=Step("scan", scale=best.scale) if best.scale else None,
            fix=f"{_asked(best)}{fix}",
            trial=trial,
            location=Location(tensors=(tensor,) if tensor else (), columns=best.columns),
        )


def _does_more(check: Check, other: Check) -> bool:
    """Return whether a form that was searched by tensor corrects far more than another one."""
    trials = [None if c.finding is None else c.finding.trial for c in (check, other)]
    return trials[0] is not None and trials[1] is not None and is_beyond(trials[0], trials[1])


def _code(form: Tried) -> str:
    """Return the code of a form; a change of single columns is explained in a comment."""
    is_of_columns = bool(form.line and form.columns)
    return f"{form.line}  # {form.words.removeprefix('with ')}" if is_of_columns else form.line


def _asked(form: Tried) -> str:
    """Return what to do for a form: its code, or words if it has no code."""
    return _code(form) or f"Give the inputs {form.words}"


def _trial(
    evidence: Evidence,
    rows: Int[Tensor, "row"],
    chooses: Bool[Tensor, "row"],
    pair: tuple[Tried, Tried],
    rival: Tried | None = None,
) -> Trial | None:
    """Return the trial of a form on held-out rows; None if a score is not known.

    A ``rival`` is named if these rows do not tell it from the form.
    """
    scores = [one.score for one in pair]
    if scores[0] is None or scores[1] is None or not len(scores[0]) == len(scores[1]) == len(rows):
        return None
    trial = Trial(
        f"its inputs {pair[1].words}",
        "inputs",
        "accuracy" if evidence.data.target is None else "error",
        rows[~chooses],
        scores[0][~chooses],
        scores[1][~chooses],
        _nats(evidence, rows, chooses, pair[1]),
        groups_at(evidence, rows[~chooses]),
        misfit=misfit_after(pair[0].misfit, pair[1].misfit),
    )
    if rival is None or rival.score is None or len(rival.score) != len(rows):
        return trial
    nats = (_nats(evidence, rows, chooses, rival), trial.nats)
    losses = None if nats[0] is None or nats[1] is None else (nats[0], nats[1])
    is_tied = does_as_well(rival.score[~chooses], trial.after, losses, trial.group)
    return replace(trial, rival=f"its inputs {rival.words}") if is_tied else trial


def _is_like_line(evidence: Evidence, found: VariantEvidence, given: Tried, best: Tried) -> bool:
    """Return whether a line through the numbers given does about as well as the best form."""
    target = evidence.data.target
    if target is None or given.numbers is None or best.numbers is None:
        return False
    place = {example: i for i, example in enumerate(found.rows.tolist())}
    scores = AnswerScores("numbers", target[found.rows], place)
    answers = [one[:, None] for one in (given.numbers, best.numbers)]
    return line_does_as_well(scores, answers[0], answers[1], found.rows, found.chooses)


def _or(trial: Trial) -> str:
    """Return the words on a rival that the rows cannot tell apart; empty if there is none."""
    rival = trial.rival.removeprefix("its inputs ")
    return f" (or, as well: {rival}; these rows cannot tell which)" if rival else ""


def _or_fix(trial: Trial) -> str:
    """Return what to do about a rival; empty if there is none."""
    rival = trial.rival.removeprefix("its inputs ")
    return f" Or give the inputs {rival}: look which of the two the data need." if rival else ""


def _nats(
    evidence: Evidence, rows: Int[Tensor, "row"], chooses: Bool[Tensor, "row"], form: Tried
) -> Float[Tensor, "row2"] | None:
    """Return the log loss of held-out rows, at the temperature fitted on the other rows."""
    if form.logits is None:
        return None
    loss = cooled_loss(form.logits, evidence.data.label[rows], chooses)
    return None if loss is None else loss[~chooses]


def _losses(
    evidence: Evidence, found: VariantEvidence, pair: tuple[Tried, Tried]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the held-out log losses: unchanged inputs, changed inputs, and one class bias.

    Every second row fits the constants of the others, and the other way round.
    """
    given, form = (one.logits for one in pair)
    label, half = evidence.data.label[found.rows], torch.arange(len(found.rows)) % 2 == 0
    if given is None or form is None:
        return None
    every = (
        crossed_loss(given, label, half),
        crossed_loss(form, label, half),
        crossed_loss(given, label, half, biased=True),
    )
    kept = [loss[~found.chooses] for loss in every if loss is not None]
    return (kept[0], kept[1], kept[2]) if len(kept) == len(every) else None


def _range(form: Tried) -> str:
    """Return the range of factors that do about as well as the factor that is named."""
    if form.range is None or form.range[1] / form.range[0] < 1.5:
        return ""
    low, high = form.range
    return f" Factors from {number(low)} to {number(high)} work about as well."


def _at(evidence: Evidence, columns: Sequence[OffColumn], n_columns: int) -> Location:
    """Return the place of columns: their names, or their positions in a table without names."""
    is_named = len(evidence.data.inputs) == n_columns
    return Location(columns=tuple(c.name if is_named else c.index for c in columns))


def _for_paste(line: str) -> str:
    """Return a line for an argument that is called like a function of Python: as ``x``.

    Examples
    --------
    >>> _for_paste("input[:, 3] = -1 * input[:, 3]")
    'x[:, 3] = -1 * x[:, 3]'
    """
    return re.sub(r"\binput\b", "x", line)


def _at_rival(check: Check, rival: Tried | None) -> Check:
    """Return a check whose finding is about the columns of a rival, too."""
    if rival is None or check.finding is None or check.finding.location is None:
        return check
    columns = dict.fromkeys((*check.finding.location.columns, *rival.columns))
    location = replace(check.finding.location, columns=tuple(columns))
    return replace(check, finding=replace(check.finding, location=location))


def _without_trial(check: Check, advice: str) -> Check:
    """Return a check whose finding cannot be the cause, with more advice."""
    assert check.finding is not None
    fix = f"{check.finding.fix.rstrip('.')}. {advice}"
    return replace(check, finding=replace(check.finding, trial=None, fix=fix))


def _reached(score: float, numbers: bool) -> str:
    """Return a mean score in words."""
    return f"{'has an R^2 of' if numbers else 'is correct on'} {_figure(score, numbers)}"


def _figure(score: float, numbers: bool) -> str:
    return number(score) if numbers else percent(score)
