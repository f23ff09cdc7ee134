"""The form of an input tensor in which a model is right about the rows that it gets wrong.

Some rows may come from another source, in other units or with other signs. No form of all rows
mends them: it spoils the others. So the rows that the model gets wrong are tried by themselves,
whatever the inputs and the answers are. A third of them choose the form, the others judge it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import mannwhitneyu
from torch import Tensor

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import two_logits
from sonde.findings.evidence.trials.answer_scores import AnswerScores
from sonde.findings.evidence.trials.mended_rows import may_be_chance, mended_by_offset
from sonde.findings.evidence.trials.tensor_forms import TensorForm, place_of, tensor_forms
from sonde.findings.evidence.trials.tensor_trials import FormSearch, in_own_budget
from sonde.findings.trial import Trial
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import Tensors

FEWEST: Final = 15
"""Least number of wrong rows, and of right rows, for a search."""
MOST: Final = 128
"""Largest number of wrong rows, and of right rows, that are used."""
WRONG: Final = 2 / 3
"""How far off a number is wrong, in standard deviations of the targets; half as far is right."""
OFF: Final = 0.1
"""Fraction of a row's positions or pixels from which their answers may be wrong."""
USUAL: Final = 3 * 1.4826
"""Median absolute deviations beyond which a row is more wrong than most."""


@dataclass(frozen=True, eq=False)
class RestoredRows:
    """The form that mends most of the wrong rows, judged on those that did not choose it.

    Parameters
    ----------
    form : TensorForm
    place : str
        The columns or the tensors that the form changes.
    right : float
        Fraction of the wrong rows that the model gets right in this form.
    constant : float
        Fraction of them that a constant on one logit, or on the number, mends as well; or that have
        the commonest of their labels.
    without : float
        Fraction of them that are mended without the numbers that the form changes: with their
        medians of the right rows in their place.
    n : int
        Wrong rows that judge.
    wrong : float
        Fraction of all rows that the model gets wrong.
    nearer : float
        Fraction of the wrong rows that the form brings nearer to rows that the model gets right.
    p : float
        Of a Mann-Whitney test that wrong rows come nearer to right rows than right rows do.
    n_classes : int
        Classes among which an answer chooses by chance; 0 for numbers and for many answers a row.
    trial : Trial
        The wrong rows that judge in this form, the right rows as they are.
    rows : tuple of int
        Examples of the wrong rows that the form mends, by planned order.
    n_tried : int
    """

    form: TensorForm
    place: str
    right: float
    constant: float
    without: float
    n: int
    wrong: float
    nearer: float
    p: float
    n_classes: int
    trial: Trial
    rows: tuple[int, ...]
    n_tried: int


def restored_rows(stream: LiveStream, evidence: Evidence) -> RestoredRows | str:
    """Return the form that mends most of the wrong rows, or the reason why none is tried.

    The trials have a budget of their own.
    """
    return in_own_budget(stream, evidence, _searched)


def _searched(search: FormSearch) -> RestoredRows | str:
    rows = _wrong_and_right(search)
    if isinstance(rows, str):
        return rows
    first = torch.arange(len(rows.wrong)) % 3 == 0
    search.chooses, search.judges = rows.wrong[first].tolist(), rows.wrong[~first].tolist()
    return _restored(search, rows)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Positions of rows with wrong and with right answers: at most one row of each group.

    Parameters
    ----------
    wrong : Int[Tensor, "row"]
    right : Int[Tensor, "row2"]
    share : float
        Fraction of all rows that are wrong.
    limit : float
        How far off a row is wrong; right is half as far off.
    """

    wrong: Int[Tensor, "row"]
    right: Int[Tensor, "row2"]
    share: float
    limit: float


def _off(scores: AnswerScores, score: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """Return how far off rows are: numbers in standard deviations of the targets."""
    off = (1 - score).clamp(min=0)
    return off.sqrt() if scores.kind == "numbers" else off


def _wrong_and_right(search: FormSearch) -> _Rows | str:
    """Return the rows that the model gets wrong, and those that it gets right."""
    every = _one_per_group(search.whole.group_keys, [*search.chooses, *search.judges])
    given = search.answers([None], every)
    if not given:
        return "no answers"
    off = _off(search.scores, search.scores.scores(given[0], search.order_of(every)))
    least = {"class": 0.5, "numbers": WRONG, "entries": OFF}[search.scores.kind]
    limit = least
    if search.scores.kind != "class":
        centre = float(off.median())
        limit = max(least, centre + USUAL * float((off - centre).abs().median()))
    bad, good = off > limit, off < limit / 2
    if min(int(bad.sum()), int(good.sum())) < FEWEST:
        return f"needs {FEWEST} rows with wrong and {FEWEST} with right answers"
    usual = _right_by_constant(search, every, given[0], limit)
    if may_be_chance(int(good.sum()), len(every), usual):
        return "the model is right no more often than a constant answer: by chance"
    at = torch.tensor(every)
    return _Rows(at[bad][:MOST], at[good][:MOST], float(bad.double().mean()), limit)


def _right_by_constant(
    search: FormSearch, every: Sequence[int], answers: Tensor, limit: float
) -> float:
    """Return the fraction of rows that the commonest label, or the median, gets right."""
    order, scores = search.order_of(every), search.scores
    if scores.kind == "entries":
        return 0.0
    if scores.kind == "class":
        counts = torch.unique(scores.targets(order), return_counts=True)[1]
        return float(counts.max()) / len(every)
    numbers = (answers if scores.head is not None else answers[:, :1]).double()
    truth = scores.targets(order).reshape(numbers.shape)
    median = truth.nanmedian(0).values.expand_as(numbers)
    return float((_off(scores, scores.scores(median, order)) < limit / 2).double().mean())


def _one_per_group(keys: Sequence[bytes], rows: list[int]) -> list[int]:
    """Return the first row of each group, in the order of the rows."""
    first: dict[bytes, int] = {}
    for row in sorted(rows):
        first.setdefault(keys[row], row)
    return [*first.values()]


def _restored(search: FormSearch, rows: _Rows) -> RestoredRows | str:
    """Return the form that mends most of the rows that choose, judged on the others."""
    promising = search.promising(tensor_forms(search.given, search.names))
    forms = search.with_numbers(promising) if promising else []
    if not forms:
        return "no form lowers the loss of the wrong rows"

    def mended(form: TensorForm | None, which: Sequence[int]) -> Bool[Tensor, "row"]:
        score = search.scores.scores(search.answers([form], which)[0], search.order_of(which))
        return _off(search.scores, score) < rows.limit / 2

    hits = [float(mended(form, search.chooses).double().mean()) for form in forms]
    losses = search.losses(forms, search.chooses)
    best = min(range(len(forms)), key=lambda i: (-hits[i], losses[i]))
    form = forms[best]
    every = [*search.chooses, *search.judges]
    is_mended = mended(form, every)
    right = is_mended[len(search.chooses) :]
    nearer, p = _nearer(search, form, rows)
    is_class = search.scores.kind == "class"
    return RestoredRows(
        form=form,
        place=_place(search, form),
        right=float(right.double().mean()),
        constant=_by_constant(search, rows),
        without=float(mended(_without(search, form, rows), search.judges).double().mean()),
        n=len(right),
        wrong=rows.share,
        nearer=nearer,
        p=p,
        n_classes=_n_classes(search) if is_class else 0,
        trial=_trial(search, form, rows),
        rows=tuple(search.order_of(every)[is_mended].tolist()),
        n_tried=search.n_tried,
    )


def _place(search: FormSearch, form: TensorForm) -> str:
    """Return the columns or the tensors that a form changes, in words."""
    if not form.columns:
        return " and ".join(form.tensors)
    axis = 1 if form.affine is None else form.affine[1]
    one = search.given[form.tensors[0]]
    return " and ".join(place_of(one, axis, i, search.names) for i in form.columns)


def _without(search: FormSearch, form: TensorForm, rows: _Rows) -> TensorForm:
    """Return the form in which all rows have the usual values where another form changes them.

    Rows whose numbers mislead the model are mended by any form that makes these numbers small.
    """

    def change(given: Tensors, order: Int[Tensor, "row"]) -> Tensors:
        tensors = dict(given)
        for name, x in form.change(given, order).items():
            if name in search.given and search.given[name].kind == "numbers":
                usual = search.given[name].x[rows.right].median(0).values
                tensors[name] = torch.where(x != given[name], usual.to(x), given[name])
        return tensors

    return replace(form, change=change)


def _n_classes(search: FormSearch) -> int:
    return two_logits(search.answers([None], search.judges)[0]).shape[1]


def _trial(search: FormSearch, form: TensorForm, rows: _Rows) -> Trial:
    """Return the trial of the form on wrong rows that judge; right rows stay as they are."""
    right = rows.right.tolist()
    before, after, kept = (
        search.scores.scores(search.answers([one], which)[0], search.order_of(which))
        for one, which in ((None, search.judges), (form, search.judges), (None, right))
    )
    order = torch.cat([search.order_of(search.judges), search.order_of(right)])
    return Trial(
        f"its inputs {form.words}",
        "some inputs",
        search.scores.measure,
        order,
        torch.cat([before, kept]),
        torch.cat([after, kept]),
    )


def _by_constant(search: FormSearch, rows: _Rows) -> float:
    """Return the fraction of the wrong rows that judge which a constant on the answers mends."""
    which = [*search.chooses, *search.judges]
    chooses = torch.arange(len(which)) < len(search.chooses)
    answers = search.answers([None], which)[0]
    if search.scores.kind == "entries":
        return 0.0
    if search.scores.kind == "class":
        right = two_logits(search.answers([None], rows.right.tolist())[0]).double()
        wrong, truth = two_logits(answers).double(), search.scores.targets(search.order_of(which))
        truth = truth.long().clamp(0, wrong.shape[1] - 1)
        always = float((truth[~chooses] == truth[chooses].mode().values).double().mean())
        return max(mended_by_offset(wrong, truth, right, chooses), always)
    order = search.order_of(which)
    numbers = (answers if search.scores.head is not None else answers[:, :1]).double()
    truth = search.scores.targets(order).reshape(numbers.shape)
    moved = numbers + (truth - numbers)[chooses].nanmedian(0).values
    score = search.scores.scores(moved, order)[~chooses]
    return float((_off(search.scores, score) < rows.limit / 2).double().mean())


Measured = Callable[[Tensor], Tensor]
"""A description of each row, (row, number), in which rows can be near to one another."""
DESCRIPTIONS: Final[tuple[Measured, ...]] = (
    lambda x: x.flatten(1),
    lambda x: x.flatten(1).sort(1).values,
    lambda x: x.sort(1).values.flatten(1),
    lambda x: x.sort(-1).values.flatten(1),
)
"""The values, and the values without their order: of all, along the first and the last axis."""


def _nearer(search: FormSearch, form: TensorForm, rows: _Rows) -> tuple[float, float]:
    """Return the fraction of wrong rows that come nearer to right rows, and the test's p-value.

    The description of the rows in which most come nearer counts; the p-value pays for the choice.
    """
    right = rows.right.tolist()
    bad, near, usual = search.judges, right[::2], right[1::2]
    best = (0.0, 1.0)
    for name in form.tensors:
        if search.given[name].kind != "numbers":
            continue
        given, changed = ({k: _changed(search, one, which)[name].double() for k, which in
                        (("bad", bad), ("near", near), ("usual", usual))}
                       for one in (None, form))  # fmt: skip
        kinds = DESCRIPTIONS[:1] if given["bad"].ndim == 2 else DESCRIPTIONS
        for describe in kinds:
            anchors = describe(given["near"])
            spread = anchors.std(0)
            spread = torch.where(spread > 0, spread, 1.0)

            def far(x: Tensor, to: Tensor = anchors, by: Tensor = spread,
                    of: Measured = describe) -> Tensor:  # fmt: skip
                return torch.cdist(of(x) / by, to / by).amin(1)

            gain, other = (far(given[k]) - far(changed[k]) for k in ("bad", "usual"))
            p = float(mannwhitneyu(gain, other, alternative="greater").pvalue) * len(kinds)
            best = max(best, (float((gain > 0).double().mean()), min(p, 1.0)))
    return best


def _changed(
    search: FormSearch, form: TensorForm | None, which: Sequence[int]
) -> dict[str, Tensor]:
    """Return the input tensors of some rows in a form."""
    at = torch.tensor(list(which))
    given = {name: one.x[at] for name, one in search.given.items()}
    return given if form is None else {**given, **form.change(given, search.order_of(which))}
