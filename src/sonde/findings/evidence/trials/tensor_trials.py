"""Changes of single input tensors that restore the answers: proposed on few rows, tested on others.

A model may take a table beside the codes of a category, a series, or two texts. Every tensor is
changed on its own, and two of them are exchanged. All forms are screened on few rows; if they cost
too much, the gradient of the loss by the inputs first tells the promising ones, all at once. The
best forms are compared on all rows that choose, and the chosen form is judged on the others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import groups_at, two_logits
from sonde.findings.evidence.trials.answer_scores import (
    AnswerScores,
    answer_scores,
    line_does_as_well,
)
from sonde.findings.evidence.trials.answer_trials import ENOUGH, constants_do_as_well
from sonde.findings.evidence.trials.batch_norm_fits import misfit_after, observe, worst_misfit
from sonde.findings.evidence.trials.code_forms import KIND, code_forms
from sonde.findings.evidence.trials.rivals import are_rivals, does_as_well
from sonde.findings.evidence.trials.shifted_rows import (
    blocks_of,
    chosen_shift,
    shifted_rows,
)
from sonde.findings.evidence.trials.tempered_loss import TEMPERATURES, as_logits, cooled_loss
from sonde.findings.evidence.trials.tensor_forms import (
    TensorForm,
    affine_form,
    tensor_forms,
)
from sonde.findings.self_check import chosen_examples
from sonde.findings.trial import CANNOT_RUN, Trial, chance_of_gain, chooses_by_key
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import InputTensor, input_tensors, with_tensors
from sonde.tap.model.seeding import untouched
from sonde.tap.streams.small_batches import SmallBatches

ROWS, LEAST, SCREENED, AGAIN, REFINED = 512, 48, 24, 16, 3
IN_ONE: Final = 768
"""Rows of one forward pass, of several forms together."""
SAME, NIL = 1.05, 0.002
WORST: Final = -4.0
"""Least score of a row of a regression in the choice of a form."""
CORRECT: Final = 0.97
"""Accuracy, or R^2, from which no form is tried."""
BESIDE: Final = 0.4
"""Size of the budget relative to that of all other trials."""
PART, NUMBERS = 0.4, 0.8
"""Parts of the budget after which forms are no longer screened, and numbers no longer fitted."""
GRID, ROUNDS = (11, 17), 4
"""Factors and offsets of a whole tensor that are tried together, and how often they get closer."""
FITS: Final = 70
"""Forms, about, that fit the factor and the offset of one place."""


@dataclass(frozen=True, eq=False)
class TensorTrials:
    """The form of an input tensor that the selection rows choose, and its trial on other rows.

    Parameters
    ----------
    form : TensorForm
    trial : Trial
    n_tried : int
        Forms that were tried.
    is_like_constants : bool
        Whether constants on the logits, or a line through the numbers, do as well.
    p_of_loss : float, default=1.0
        p-value that the log loss of classes falls, each at its best temperature.
    """

    form: TensorForm
    trial: Trial
    n_tried: int
    is_like_constants: bool = False
    p_of_loss: float = 1.0


def tensor_trials(stream: LiveStream, evidence: Evidence) -> TensorTrials | str:
    """Try other forms of every input tensor, or return the reason why none is tried.

    The trials have a budget of their own: those of parts, which follow, keep theirs.
    """
    return in_own_budget(stream, evidence, lambda search: search.chosen())


Tried = TypeVar("Tried")


def in_own_budget(
    stream: LiveStream,
    evidence: Evidence,
    of: Callable[["FormSearch"], Tried],
    part: float = BESIDE,
) -> Tried | str:
    """Return the result of a search for a form with a budget of its own, or why none is made."""
    data = evidence.data
    budget = evidence.budget.beside(part)
    evidence = replace(evidence, budget=budget)
    n = budget.rows(ROWS, LEAST, SCREENED)
    small = whole_examples(stream, chosen_examples(stream, n, data.seed))
    if len(small) < LEAST:
        return f"needs {LEAST} rows of one shape"
    order = small.together(range(len(small))).order.tolist()
    scores = answer_scores(stream, evidence, order)
    if isinstance(scores, str):
        return scores
    with untouched(stream.model.module), torch.no_grad(), budget.counting():
        return of(FormSearch(stream, small, evidence, scores))


def whole_examples(stream: LiveStream, which: Sequence[int]) -> SmallBatches:
    """Return examples as the model receives them, padding included, of the commonest shape."""
    batches = [next(iter(stream.inputs.batches(i, i + 1)), None) for i in which]
    singles = [one for one in batches if one is not None]
    module = stream.model.module
    shapes = [tuple((k, t.x.shape[1:]) for k, t in input_tensors(module, one).items())
              for one in singles]  # fmt: skip
    common = max(shapes, key=shapes.count, default=())
    kept = [one for one, shape in zip(singles, shapes, strict=True) if shape == common]
    return SmallBatches(tuple(kept), 0, False, False)


class FormSearch:
    """Forms of the inputs of some examples, and the model's answers to them.

    Parameters
    ----------
    stream : LiveStream
    small : SmallBatches
        The examples, all of one shape.
    evidence : Evidence
    scores : AnswerScores
    """

    def __init__(
        self,
        stream: LiveStream,
        small: SmallBatches,
        evidence: Evidence,
        scores: AnswerScores,
    ) -> None:
        self.stream, self.small, self.evidence = stream, small, evidence
        self.scores = scores
        self.module = stream.model.module
        self.whole = small.together(range(len(small)))
        self.given = input_tensors(self.module, self.whole)
        self.names = evidence.data.inputs
        is_known = scores.known(self.whole.order)
        for one in self.given.values():  # one NaN would be the mean loss of all forms
            is_known = is_known & torch.isfinite(one.x).reshape(len(one.x), -1).all(1)
        chooses = chooses_by_key(self.whole.group_keys)
        self.chooses: list[int] = torch.nonzero(is_known & chooses).flatten().tolist()
        self.judges: list[int] = torch.nonzero(is_known & ~chooses).flatten().tolist()
        self.n_tried = 0
        self.rival: TensorForm | None = None

    def chosen(self) -> TensorTrials | str:
        """Return the best form and its trial."""
        return self.judged(
            lambda: self.best([
                *self._shift(),
                *code_forms(self),
                *self.with_numbers(self.promising(tensor_forms(self.given, self.names))),
            ])
        )  # fmt: skip

    def judged(
        self, choose: Callable[[], TensorForm | None], leaves_out: bool = False
    ) -> TensorTrials | str:
        """Return a form and its trial on the rows that did not choose it.

        Parameters
        ----------
        choose : callable
            Gives the form that the rows which choose call for; None if there is none.
        leaves_out : bool, default=False
            Whether the form replaces values by usual ones.
        """
        if min(len(self.chooses), len(self.judges)) < LEAST // 4:
            return "too few rows with labels"
        own = self.scored(None, self.judges)
        if own is None or float(own.mean()) > CORRECT:
            return "there was no reason to try other forms" if own is not None else "no answers"
        best = choose()
        after = None if best is None else self.scored(best, self.judges)
        if best is None or after is None:
            return "no form lowers the loss"
        misfit = misfit_after(self._misfit(None), self._misfit(best))
        is_like_constants = (leaves_out or misfit != "gone") and self._is_like_constants(
            best, 1.0 if leaves_out else ENOUGH
        )
        if is_like_constants and not leaves_out:
            return "constants on the logits do as well"
        rows = self.order_of(self.judges)
        groups = groups_at(self.evidence, rows)
        if not best.tensors:  # the inputs of other rows
            groups = blocks_of(after - own, rows)
        rival = None if leaves_out else self._tied_rival(best, after, groups)
        trial = Trial(
            f"its inputs {best.words}",
            "inputs",
            self.scores.measure,
            rows,
            own,
            after,
            self._nats(best),
            groups,
            leaves_out=leaves_out,
            rival="" if rival is None else f"its inputs {rival.words}",
            misfit=misfit,
        )
        given = self._nats(None)
        p_of_loss = 1.0
        if given is not None and trial.nats is not None:
            p_of_loss = chance_of_gain(-given, -trial.nats, groups)
        return TensorTrials(best, trial, self.n_tried, is_like_constants, p_of_loss)

    def _misfit(self, form: TensorForm | None) -> float:
        """Return the largest misfit of the batch norms on the rows that judge."""
        batch = self.small.together(self.judges)
        changed = with_tensors(self.module, batch, _each([form], batch.order))
        return worst_misfit(self.stream, changed)

    def _tied_rival(
        self, best: TensorForm, after: Float[Tensor, "row"], groups: Int[Tensor, "row"] | None
    ) -> TensorForm | None:
        """Return the best form of other places if the held-out rows cannot tell it apart."""
        rival, order = self.rival, self.order_of(self.judges)
        answers = [] if rival is None else self.answers([rival, best], self.judges)
        if not answers:
            return None
        score = self.scores.scores(answers[0], order)
        losses = (self._cooled(answers[0], order), self._cooled(answers[1], order))
        return rival if does_as_well(score, after, losses, groups) else None

    def _cooled(self, answers: Tensor, order: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return the loss of each row, of classes at the temperature that suits the answers."""
        if self.scores.kind != "class":
            return self.row_losses(answers, self.judges)
        logits = as_logits(two_logits(answers))
        losses = [self.scores.losses(logits / t, order) for t in TEMPERATURES]
        return min(losses, key=lambda loss: float(loss.mean()))

    def _nats(self, form: TensorForm | None) -> Float[Tensor, "row"] | None:
        """Return the log loss of the rows that judge, at the temperature of those that choose."""
        if self.scores.kind != "class":
            return None
        rows = [*self.chooses, *self.judges]
        chooses = torch.arange(len(rows)) < len(self.chooses)
        label = self.evidence.data.label[self.order_of(rows)]
        loss = cooled_loss(self.answers([form], rows)[0], label, chooses)
        return None if loss is None else loss[~chooses]

    @property
    def _is_ordered(self) -> bool:
        """Return whether rows may follow one another in time: no groups, and enough of them."""
        return len(self.stream.inputs) > 2 * LEAST and not self.evidence.data.grouped

    def answers(self, forms: Sequence[TensorForm | None], rows: Sequence[int]) -> list[Tensor]:
        """Return the answers in each form, of several forms in one forward pass."""
        answers: list[Tensor] = []
        per = max(1, IN_ONE // len(rows))
        for at in range(0, len(forms), per):
            some = forms[at : at + per]
            batch = self.small.together([*rows] * len(some))
            order = batch.order[: len(rows)]

            changed = with_tensors(self.module, batch, _each(some, order))
            scored = self.scores.of(observe(self.stream, changed, {}))
            if scored is None:
                return []
            answers += scored.split(len(rows))
        return answers

    def losses(self, forms: Sequence[TensorForm | None], rows: Sequence[int]) -> list[float]:
        """Return the mean loss of some rows in each form; infinite if it is not known."""
        self.n_tried += len(forms)
        try:
            answers = self.answers(forms, rows)
            return self._means(torch.stack(answers), rows) if answers else [math.inf] * len(forms)
        except CANNOT_RUN:
            if len(forms) == 1:
                return [math.inf]
        half = len(forms) // 2
        return self.losses(forms[:half], rows) + self.losses(forms[half:], rows)

    def _means(self, answers: Float[Tensor, "form row *rest"], rows: Sequence[int]) -> list[float]:
        """Return the mean loss of each form, of classes at the temperature that suits it."""
        order = self.order_of(rows)
        if self.scores.kind == "class":
            logits = [as_logits(two_logits(one)) for one in answers]
            losses = [
                torch.stack([self.scores.losses(one / t, order).mean() for one in logits])
                for t in TEMPERATURES
            ]
            mean = torch.stack(losses).amin(0)
        else:
            mean = torch.stack([self.row_losses(one, rows).mean() for one in answers])
        return torch.where(mean.isfinite(), mean, math.inf).tolist()

    def order_of(self, rows: Sequence[int]) -> Int[Tensor, "row"]:
        """Return the examples of rows, by planned order."""
        return self.whole.order[torch.tensor(rows)]

    def scored(self, form: TensorForm | None, rows: Sequence[int]) -> Float[Tensor, "row"] | None:
        """Return the score of each row in a form; None if the answers are not known."""
        answers = self.answers([form], rows)
        return self.scores.scores(answers[0], self.order_of(rows)) if answers else None

    def _is_like_constants(self, form: TensorForm, enough: float) -> bool:
        """Return whether constants on the logits, or a line through the numbers, do as well."""
        rows = [*self.chooses, *self.judges]
        chooses = torch.arange(len(rows)) < len(self.chooses)
        given, formed = (self.answers([one], rows)[0] for one in (None, form))
        order = self.order_of(rows)
        groups = groups_at(self.evidence, order[~chooses])
        if self.scores.kind == "numbers":
            return line_does_as_well(self.scores, given, formed, order, chooses, enough)
        if self.scores.kind == "entries":
            return False
        label = self.evidence.data.label[order]
        return constants_do_as_well(given, formed, label, chooses, groups, enough)

    def _shift(self) -> list[TensorForm]:
        """Return the form with the inputs of other rows that the unchanged rows call for."""
        if not self._is_ordered:
            return []
        rows, forms = [*self.chooses, *self.judges], shifted_rows(self.stream)
        if not self.evidence.budget.affords(len(rows) * (1 + len(forms)), PART):
            self.evidence.budget.leave_out(KIND, len(forms))
            return []
        self.n_tried += len(forms)
        try:
            answers = self.answers([None, *forms], rows)
        except CANNOT_RUN:  # such as a neighbour of another shape
            return []
        if not answers:
            return []
        chooses = torch.arange(len(rows)) < len(self.chooses)
        best = chosen_shift(self.scores, answers, self.order_of(rows), chooses)
        return [] if best is None else [forms[best]]

    def _few(self, n: int) -> list[int]:
        """Return rows that choose, spread over the file."""
        step = max(1, len(self.chooses) // n)
        return self.chooses[::step][:n]

    def promising(self, forms: list[TensorForm]) -> list[TensorForm]:
        """Return the forms with the least loss on few rows, as many as the budget allows."""
        budget, rows = self.evidence.budget, self._few(SCREENED)
        cost = budget.cost.each * len(rows) + budget.cost.call / max(1, IN_ONE // len(rows))
        n = int(budget.left(PART) / max(cost, 1e-9))
        if n < len(forms):
            steepness = self._steepness(forms, rows)
            order = sorted(range(len(forms)), key=lambda i: steepness[i])
            budget.leave_out(KIND, len(forms) - n)
            forms = [forms[i] for i in sorted(order[:n])]
        if not forms:
            return []
        losses = self.losses([None, *forms], rows)
        order = sorted(range(len(forms)), key=lambda i: losses[i + 1])
        return [forms[i] for i in sorted(order[:AGAIN]) if losses[i + 1] < losses[0]]

    def _steepness(self, forms: Sequence[TensorForm], rows: Sequence[int]) -> list[float]:
        """Return the change of the loss that its gradient predicts for each form, in errors.

        Forms of tensors without a gradient, such as codes, come first.
        """
        batch = self.small.together(rows)
        given = {n: t.x.clone() for n, t in input_tensors(self.module, batch).items()}
        free = {n: x.float().requires_grad_() for n, x in given.items() if x.is_floating_point()}
        try:
            with torch.enable_grad():
                answers = self.differentiable(batch, {**given, **free})
                if answers is None:
                    return [0.0] * len(forms)
                loss = self.scores.losses(answers, self.order_of(rows))
                grads = torch.autograd.grad(loss.sum(), list(free.values()), allow_unused=True)
        except RuntimeError:
            return [0.0] * len(forms)
        slope = dict(zip(free, grads, strict=True))
        steepness: list[float] = []
        for form in forms:
            new = form.change(given, batch.order)
            parts = [(slope[n] * (x - given[n])).flatten(1).sum(1) for n, x in new.items()
                     if slope.get(n) is not None]  # fmt: skip
            if not parts or any(n not in slope for n in new):
                steepness.append(-math.inf)
                continue
            step = torch.stack(parts).sum(0).double()
            steepness.append(float(step.sum() / step.square().sum().sqrt().clamp(min=1e-30)))
        return steepness

    def differentiable(self, batch: InputBatch, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Return the answers to a batch with these input tensors, not detached from them."""
        changed = with_tensors(self.module, batch, lambda _: dict(tensors))
        args, kwargs = self.stream.probe.place.call(changed.args, changed.kwargs)
        return self.scores.of(self.module(*args, **kwargs))

    def best(self, forms: Sequence[TensorForm]) -> TensorForm | None:
        """Return the form with the least loss on the rows that choose, if it lowers the loss."""
        if not forms:
            return None
        given, *losses = self.losses([None, *forms], self.chooses)
        least = min(losses)
        best = forms[losses.index(least)]
        for form, loss in zip(forms, losses, strict=True):
            is_simpler = form.affine == best.affine and form.n_numbers < best.n_numbers
            if best.affine is not None and is_simpler and loss <= SAME * least + NIL:
                best = form
        others = [i for i, form in enumerate(forms) if self._is_elsewhere(form, best)]
        self.rival = None if not others else forms[min(others, key=lambda i: losses[i])]
        return best if least < given else None

    def _is_elsewhere(self, form: TensorForm, best: TensorForm) -> bool:
        """Return whether two forms change other tensors, or other columns of one table."""
        if not form.tensors or not best.tensors:
            return False
        shared = set(form.tensors) & set(best.tensors)
        are_tables = all(self.given[name].x.ndim == 2 for name in shared)
        return not shared or (are_tables and are_rivals(form.columns, best.columns))

    def with_numbers(self, forms: Sequence[TensorForm]) -> list[TensorForm]:
        """Return the forms, and those of the best places in the numbers that suit the rows."""
        losses = self.losses(forms, self.chooses) if forms else []
        best: dict[object, TensorForm] = {}
        for i in sorted(range(len(forms)), key=lambda i: losses[i]):
            if forms[i].affine is not None:
                best.setdefault(forms[i].affine, forms[i])
        n = self.evidence.budget.rows(len(self.chooses), SCREENED, REFINED * FITS, NUMBERS)
        rows = self._few(n)
        refined = [self._refined(form, rows) for form in [*best.values()][:REFINED]]
        wholes = [one for one in self.given.values() if one.kind == "numbers"]
        joint = [self._both(one, rows) for one in wholes if self._affords_both(rows)]
        return [*forms, *(form for some in refined for form in some), *joint]

    def _affords_both(self, rows: Sequence[int]) -> bool:
        return self.evidence.budget.affords(GRID[0] * GRID[1] * len(rows), NUMBERS)

    def _both(self, one: InputTensor, rows: Sequence[int]) -> TensorForm:
        """Return the factor and the offset of a whole tensor that suit the rows together.

        Offsets are counted in standard deviations from the tensor's mean.
        """
        x = one.x.double()
        mean, spread = float(x.mean()), float(x.std()) or 1.0

        def numbers(log: float, off: float) -> tuple[float, float]:
            factor = 2.0**log
            offset = mean * (1 - factor) + off * spread * factor
            return float(f"{factor:.3g}"), float(f"{offset:.3g}")

        logs, offs = torch.linspace(-5, 5, GRID[0]), torch.linspace(-4, 4, GRID[1])
        at, step = (0.0, 0.0), (float(logs[1] - logs[0]), float(offs[1] - offs[0]))
        pairs = [(a, b) for a in logs.tolist() for b in offs.tolist()]
        for _ in range(ROUNDS):
            losses = self.losses(
                [affine_form(one, 1, -1, *numbers(*pair), self.names) for pair in pairs], rows
            )
            at = pairs[losses.index(min(losses))]
            step = (step[0] / 2, step[1] / 2)
            pairs = [(at[0] + i * step[0], at[1] + j * step[1])
                     for i in (-1, 0, 1) for j in (-1, 0, 1)]  # fmt: skip
        return affine_form(one, 1, -1, *numbers(*at), self.names)

    def _refined(self, form: TensorForm, rows: Sequence[int]) -> list[TensorForm]:
        """Return the best factor and the best offset at the place of a form, in round numbers."""
        assert form.affine is not None
        name, axis, i = form.affine
        one = self.given[name]
        x = (one.x if i < 0 else one.x.select(axis, i)).double()
        sign, spread = math.copysign(1.0, form.numbers[0]), float(x.std()) or 1.0
        powers = [2.0**k for k in range(-11, 12)]
        factors = [(sign * f, 0.0) for f in powers]
        offsets = [(1.0, s * spread * f) for f in powers[6:17] for s in (1, -1)]
        refined: list[TensorForm] = []
        for pairs in (factors, offsets):
            for step in (2**0.5, 2**0.25, 2**0.125):
                at = self._least(one, axis, i, pairs, rows)
                pairs = [at.numbers, *(_stretched(at.numbers, f) for f in (1 / step, step))]
            at = self._least(one, axis, i, pairs, rows)
            round_ones = [_rounded(at.numbers, digits) for digits in (1, 2)]
            refined.append(self._least(one, axis, i, [*round_ones, at.numbers], rows, first=True))
        return refined

    def _least(
        self,
        one: InputTensor,
        axis: int,
        i: int,
        pairs: Sequence[tuple[float, float]],
        rows: Sequence[int],
        first: bool = False,
    ) -> TensorForm:
        """Return the numbers with the least loss, or the first ones that do about as well."""
        forms = [affine_form(one, axis, i, *pair, self.names) for pair in pairs]
        losses = self.losses(forms, rows)
        limit = SAME * min(losses) + NIL if first else min(losses)
        return next(form for form, x in zip(forms, losses, strict=True) if x <= limit)

    def row_losses(self, answers: Tensor, rows: Sequence[int]) -> Float[Tensor, "row"]:
        """Return the loss of each row, of regressions with a limit."""
        losses = self.scores.losses(answers, self.order_of(rows))
        return losses.clamp(max=1 - WORST) if self.scores.kind == "numbers" else losses


def _each(
    forms: Sequence[TensorForm | None], order: Int[Tensor, "row"]
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return the change of a batch of copies of some rows, each copy in another form."""

    def change(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts = {name: list(x.split(len(order))) for name, x in given.items()}
        for i, form in enumerate(forms):
            own = {name: part[i] for name, part in parts.items()}
            for name, x in ({} if form is None else form.change(own, order)).items():
                parts[name][i] = x.to(own[name].dtype)
        return {name: torch.cat(part) for name, part in parts.items()}

    return change


def _stretched(numbers: tuple[float, float], by: float) -> tuple[float, float]:
    factor, offset = numbers
    return (factor, offset * by) if offset else (factor * by, 0.0)


def _rounded(numbers: tuple[float, float], digits: int) -> tuple[float, float]:
    factor, offset = (float(f"{x:.{digits}g}") for x in numbers)
    return factor, offset
