"""The form of the inputs that makes the model correct on rows that it gets wrong."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binom, mannwhitneyu
from torch import Tensor

from sonde.findings.evidence.answers.answers import right_rows
from sonde.findings.evidence.answers.number_answers import number_rows
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import one_per_group, shared_rows, two_logits
from sonde.findings.evidence.trials.batch_norm_fits import in_chunks, observe
from sonde.findings.evidence.trials.input_forms import Change, Inputs
from sonde.findings.evidence.trials.tried_forms import (
    ROWS,
    Tried,
    forms_of,
    logits_of,
    numbers_of,
    simple_form,
    tried_forms,
)
from sonde.findings.trial import Measure, Scope, Trial
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import input_tensors
from sonde.tap.streams.small_batches import SmallBatches, small_batches

CHANCE: Final = 0.1
"""p-value from which right answers may be chance, so that no row is known to be as in training."""
KEPT: Final = 0.95
STEPS: Final = 12


FEWEST = 15  # wrong rows, a third of which choose a form
WRONG = 2 / 3  # of the targets' spread: how far off a number is wrong; half as far off it is right
TIED, HOPELESS = 0.1, 0.5


@dataclass(frozen=True, eq=False)
class MendedRows:
    """The form that makes the model correct on most of the rows that it gets wrong.

    A third of these rows chose the form. The figures are of the others.

    Parameters
    ----------
    form : Tried
    right : float
        Share of the rows that the model gets right in this form.
    nearer : float
        Share of the rows that this form brings nearer to rows that the model gets right: to the
        nearest of them or, unless the inputs are a table, to most of them by sorted values. The
        larger share of both.
    p : float
        Of a Mann-Whitney test that wrong rows come nearer to right rows than right rows do.
    n : int
        Rows that did not choose.
    wrong : float
        Share of all sampled rows that the model gets wrong.
    offset : float
        Share of the rows that a constant on one class's logit mends as well; 0 for numbers.
    kept : float
        Share of the right rows that the model still gets right in this form.
    scored : tuple of Trial
        Scores of the wrong rows that did not choose, and of right rows, all in this form; empty if
        these are not known.
    tensor : str
        Name of the input.
    """

    form: Tried
    right: float
    nearer: float
    p: float
    n: int
    wrong: float
    offset: float = 0.0
    kept: float = 0.0
    scored: tuple[Trial, ...] = ()
    tensor: str = ""

    def trial(self, scope: Scope) -> Trial | None:
        """Return the trial of this form on all rows, or on the wrong rows alone."""
        if len(self.scored) < 2:
            return None
        wrong, right = self.scored
        return Trial(
            f"its inputs {self.form.words}",
            scope,
            wrong.measure,
            torch.cat([wrong.rows, right.rows]),
            torch.cat([wrong.before, right.before]),
            torch.cat([wrong.after, right.before if scope == "some inputs" else right.after]),
        )


@dataclass(frozen=True)
class JudgedRows:
    """Examples of different groups in planned order: at most 128 wrong and 128 correct ones.

    ``wrong`` and ``right`` hold the examples by the model's answer as they are given. ``share`` is
    the share of all wrong rows, ``least`` the score above which an answer is right.
    """

    wrong: list[int]
    right: list[int]
    share: float
    least: float


def wrong_and_right(evidence: Evidence) -> JudgedRows | None:
    """Return examples with wrong and with correct answers; None below 15 of either.

    A number is wrong beyond two thirds of the targets' spread and three usual errors.
    """
    numbers, shared, limit = number_rows(evidence), shared_rows(evidence), WRONG
    usual = 0.0
    if not isinstance(numbers, str):
        where, answers, truth = numbers
        off = torch.full((len(shared.group),), math.nan, dtype=torch.float64)
        spread = truth.std(correction=0)
        off[where] = (answers - truth).abs() / spread
        limit = max(limit, 3 * 1.4826 * float(off.nanmedian()))
        usual = ((truth - truth.median()).abs() / spread < limit / 2).double().mean().item()
    elif (is_right := right_rows(evidence)) is not None:
        off = 1 - is_right
    else:
        return None
    order, one = shared.order, one_per_group(shared.group)
    bad, good = one[off[one] > limit], one[off[one] < limit / 2]
    if order is None or min(len(bad), len(good)) < FEWEST:
        return None
    if may_be_chance(len(good), int(torch.isfinite(off[one]).sum()), usual):
        return None
    wrong, right = (order[rows[:ROWS]].tolist() for rows in (bad, good))
    share = len(bad) / int(torch.isfinite(off[one]).sum())
    return JudgedRows(wrong, right, share, 1 - (limit / 2) ** 2)


def may_be_chance(n_right: int, n: int, usual: float) -> bool:
    """Return whether a constant that is right on a fraction of rows may be right on as many.

    Then no row is known to be as in training.

    Parameters
    ----------
    n_right, n : int
        Rows that the model gets right, and all rows.
    usual : float
        Fraction of the rows on which the constant is right.

    Examples
    --------
    >>> may_be_chance(62, 100, 0.6), may_be_chance(90, 100, 0.6)
    (True, False)
    """
    return float(binom.sf(n_right - 1, n, usual)) >= CHANCE


def mended_rows(stream: LiveStream, evidence: Evidence, rows: JudgedRows) -> tuple[MendedRows, ...]:
    """Search for the form of the wrong rows in which the model is correct.

    Among forms that mend about equally many of the choosing rows, the first result is the form
    that brings these rows nearest to right rows, the second the form that mends most.
    """
    bad, good = (
        small_batches(stream.model, stream.inputs, which, None)
        for which in (rows.wrong, rows.right)
    )
    if min(len(bad), len(good)) < FEWEST:
        return ()
    x, others = numbers_of(bad), numbers_of(good)
    if x.shape[1:] != others.shape[1:]:
        return ()
    forms, chooses = forms_of(x, evidence, True, others), torch.arange(len(x)) % 3 == 0
    tried = {
        t: (t.score > rows.least).double()
        for t in tried_forms(stream, bad, forms, (), evidence, True)
        if t.score is not None
    }
    as_given = next(iter(tried), None)
    most = max((float(hit[chooses].mean()) for hit in tried.values()), default=0.0)
    if most < HOPELESS:
        return ()
    measures = _distances(others, bool(evidence.data.inputs) and x.ndim == 2)
    tied = [form for form, hit in tried.items() if float(hit[chooses].mean()) >= most - TIED]
    offset = _by_offset(stream, bad, good, chooses) if evidence.data.target is None else 0.0

    def made(form: Tried) -> MendedRows | None:
        change, held = forms[form.words], tried[form][~chooses]
        gain, usual = max(
            ([m(given) - m(change(given)) for given in (x[~chooses], others[1::2])]
             for m in measures), key=lambda pair: float((pair[0] > 0).double().mean()),
        )  # fmt: skip
        both = _on_right_rows(stream, good, {"": forms[""], form.words: change}, evidence)
        if both is None:
            return None
        return MendedRows(
            form=form,
            right=float(held.mean()),
            nearer=float((gain > 0).double().mean()),
            p=float(mannwhitneyu(gain, usual, alternative="greater").pvalue),
            n=len(held),
            wrong=rows.share,
            offset=offset,
            kept=_share_right(both[1], rows.least),
            scored=_scored(bad, good, ~chooses, (as_given, form), both, evidence),
            tensor=tensor_name(stream, bad),
        )

    def simple(form: Tried) -> Tried:
        def hit(one: Tried) -> Tensor:
            assert one.score is not None
            return (one.score > rows.least).double()[chooses]

        simplest = simple_form(stream, bad, form, hit, evidence)
        assert simplest.score is not None
        tried[simplest] = (simplest.score > rows.least).double()
        forms[simplest.words] = simplest.change
        return simplest

    near = min(tied, key=lambda one: float(measures[0](forms[one.words](x[chooses])).mean()))
    best = max(tied, key=lambda one: float(tried[one][chooses].mean()))
    simplest = (made(simple(one)) for one in dict.fromkeys((near, best)))
    return tuple(one for one in simplest if one is not None)


def tensor_name(stream: LiveStream, small: SmallBatches) -> str:
    """Return the name of the one input tensor of some examples."""
    return next(iter(input_tensors(stream.model.module, small.singles[0])), "")


def _share_right(form: Tried, least: float) -> float:
    """Return the fraction of rows whose score in a form exceeds a limit; 0 without scores."""
    return 0.0 if form.score is None else float((form.score > least).double().mean())


def _on_right_rows(
    stream: LiveStream, good: SmallBatches, forms: dict[str, Change], evidence: Evidence
) -> tuple[Tried, Tried] | None:
    """Return the trials of correct rows, unchanged and transformed; None if the budget runs out."""
    both = list(tried_forms(stream, good, forms, (), evidence, True))
    return (both[0], both[1]) if len(both) > 1 else None


Distance = Callable[[Inputs], Tensor]


def _distances(others: Inputs, is_table: bool) -> tuple[Distance, ...]:
    """Return distances from rows to correct rows, also by sorted values unless a table."""
    scale = others.std(0) if is_table else torch.ones(())
    scale = torch.where(scale > 0, scale, 1.0)
    levels = others[::2].flatten(1).sort(1).values

    def far(rows: Inputs) -> Tensor:
        return torch.cdist((rows / scale).flatten(1), (others[::2] / scale).flatten(1)).amin(1)

    def tones(rows: Inputs) -> Tensor:
        return torch.cdist(rows.flatten(1).sort(1).values, levels).median(1).values

    return (far,) if is_table else (far, tones)


def _scored(
    bad: SmallBatches,
    good: SmallBatches,
    judge: Tensor,
    wrong: tuple[Tried | None, Tried],
    right: tuple[Tried, Tried],
    evidence: Evidence,
) -> tuple[Trial, ...]:
    """Return scores of held-out wrong rows and of correct rows, unchanged and in a form."""
    measure: Measure = "accuracy" if evidence.data.target is None else "error"
    trials: list[Trial] = []
    for small, mask, pair in ((bad, judge, wrong), (good, None, right)):
        rows = small.together(range(len(small))).order
        scores = [one.score for one in pair if one is not None and one.score is not None]
        if len(scores) < 2 or len(scores[0]) != len(rows):
            return ()
        kept = torch.ones(len(rows), dtype=torch.bool) if mask is None else mask
        before, after = scores[0][kept], scores[1][kept]
        trials.append(Trial(right[1].words, "inputs", measure, rows[kept],
                           before, after))  # fmt: skip
    return tuple(trials)


def _by_offset(stream: LiveStream, bad: SmallBatches, good: SmallBatches, chooses: Tensor) -> float:
    """Return the fraction of the wrong rows that a bias on one class's logit corrects."""
    given = [_given(stream, small) for small in (bad, good)]
    truth = bad.together(range(len(bad))).label
    if given[0] is None or given[1] is None or len(truth) != len(chooses):
        return 0.0
    wrong, right = (two_logits(logits).double() for logits in given if logits is not None)
    return mended_by_offset(wrong, truth.clamp(max=wrong.shape[1] - 1), right, chooses)


def _given(stream: LiveStream, small: SmallBatches) -> Float[Tensor, "row class"] | None:
    """Return the logits of unchanged rows; None if they are not known."""
    parts = [logits_of(observe(stream, batch, {}), stream) for batch in in_chunks(small)]
    present = [logits for logits in parts if logits is not None]
    return torch.cat(present) if len(present) == len(parts) else None


# Rows beyond a shifted threshold can be taken for rows in another form: any change that moves them
# back mends them too. A shifted threshold is the simpler explanation.
def mended_by_offset(
    wrong: Float[Tensor, "row class"],
    truth: Int[Tensor, "row"],
    right: Float[Tensor, "row2 class"],
    chooses: Bool[Tensor, "row"],
) -> float:
    """Return the fraction of held-out wrong rows that the best class bias corrects.

    Parameters
    ----------
    wrong, right : Float[Tensor, "row class"]
        Logits of rows that the model gets wrong, and right. A constant must leave the answers of
        95 % of the right rows unchanged.
    truth : Int[Tensor, "row"]
        Labels of the wrong rows.
    chooses : Bool[Tensor, "row"]
        Wrong rows that choose the class and the constant.
    """
    lack = wrong.amax(1) - wrong.gather(1, truth[:, None])[:, 0]
    quantiles = torch.linspace(0, 1, STEPS, dtype=lack.dtype)
    sizes = 1.01 * torch.quantile(lack[chooses], quantiles) + 1e-9
    answers, best = right.argmax(1), (0.0, 0.0)
    for k in range(wrong.shape[1]):
        for size in torch.cat([sizes, -sizes]).tolist():
            offset = torch.zeros(wrong.shape[1], dtype=wrong.dtype)
            offset[k] = size
            if float(((right + offset).argmax(1) == answers).double().mean()) < KEPT:
                continue
            hit = ((wrong + offset).argmax(1) == truth).double()
            best = max(best, (float(hit[chooses].mean()), float(hit[~chooses].mean())))
    return best[1]
