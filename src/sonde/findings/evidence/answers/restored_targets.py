"""The form of the targets in which rows that a regression gets wrong are as right as the others.

Some rows may have their targets in another unit, with the other sign or as a logarithm, as after
two tables were joined. No change of all answers mends them: it spoils the others. No row is run
again. A third of the wrong rows choose the form, the others judge it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binom, mannwhitneyu
from torch import Tensor

from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.evidence.answers.head_answers import Heads
from sonde.findings.evidence.answers.number_answers import number_rows
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import one_per_group, shared_rows
from sonde.findings.trial import Trial

FEWEST: Final = 15
"""Least number of rows with wrong, and with right, answers."""
QUARTILE: Final = 0.3186
"""A quarter of normal errors are smaller than this many standard deviations."""
WRONG: Final = 3.0
"""Usual errors from which a row is wrong."""
RIGHT: Final = 2.0
"""Usual errors up to which it is mended."""
FEW: Final = 0.2
"""Fitted constants are tried if no more rows, relative to the wrong ones, have errors between those
of right and of wrong rows: long tails have more."""
TAIL: Final = 0.5
"""Such errors in between, relative to the wrong rows, from which both may be of one kind."""
CLOSE: Final = 0.1
"""Fraction of the choosing rows by which a later form must mend more."""
NEAR_POWER: Final = 0.2
LEAST_FACTOR: Final = 1.5
MOST_BINS, BIN = 5, 40
"""Usual errors are estimated in at most 5 bins of answers of about one size, of 40 rows or more."""
MOST_TURNS: Final = 20
"""Ways to give rows the targets of other rows."""
MOST_NUMBERS: Final = 8
"""Numbers of a row among which two may be exchanged."""
SMALLEST: Final = 1e-6
"""Least usual error, in standard deviations of the targets."""


@dataclass(frozen=True, eq=False)
class TargetForm:
    """A form of targets: words that follow "with their targets", code on ``target``, a function.

    ``is_fitted`` says that its constants can make up for errors of one sign.
    """

    words: str
    line: str
    of: Callable[[Tensor], Tensor]
    is_fitted: bool = False


@dataclass(frozen=True, eq=False)
class RestoredTargets:
    """The form that mends most of the wrong rows, judged on those that did not choose it.

    Parameters
    ----------
    form : TargetForm
    rows : tuple of int
        Examples of all wrong rows that are right in this form, by planned order.
    mended : float
        Fraction of the judging wrong rows that are right in this form.
    chance : float
        The same if every row gets the target of another of these rows.
    n : int
        Wrong rows that judge.
    p : float
        That as many rows are mended at that chance.
    wrong : float
        Fraction of all rows that are wrong.
    rougher : float
        p-value that the mended rows are further off than the right rows are: another curve than the
        true one brings rows into the range of right ones, but not as near.
    is_tail : bool
        Whether right and wrong rows may be of one kind, with a long tail of errors: for each wrong
        row, half an error or more lies between those of right and of wrong rows.
    trial : Trial
        The wrong rows that judge in this form, the right rows as they are.
    """

    form: TargetForm
    rows: tuple[int, ...]
    mended: float
    chance: float
    n: int
    p: float
    wrong: float
    rougher: float
    is_tail: bool
    trial: Trial


@once
def restored_targets(evidence: Evidence) -> RestoredTargets | str | None:
    """Return the form of the targets that mends most of the wrong rows, or a reason if none.

    None if too few rows are wrong, or right.
    """
    numbers, shared = number_rows(evidence), shared_rows(evidence)
    if not isinstance(numbers, str) and shared.order is not None:
        where, answers, truth = numbers
        return restored(answers[:, None], truth[:, None], shared.order[where], shared.group[where])
    heads = evidence.get(judge_heads)
    head = next((h for h in heads.found if h.numbers), None) if isinstance(heads, Heads) else None
    if head is None or head.numbers is None:
        return "the labels are not numbers that the model answers"
    return restored(*head.numbers, torch.tensor(head.examples), head.group)


def restored(
    answers: Float[Tensor, "row number"],
    truth: Float[Tensor, "row number"],
    examples: Int[Tensor, "row"],
    group: Int[Tensor, "row"],
) -> RestoredTargets | str | None:
    """Search for the form of the targets in which wrong rows are right; one row of each group."""
    some = one_per_group(group)
    some = some[(torch.isfinite(answers) & torch.isfinite(truth)).all(1)[some]]
    y, t, order = answers[some].double(), truth[some].double(), examples[some]
    if not len(some) or not bool((t.std(0, correction=0) > 0).all()):
        return "the targets are all equal"
    unit = _usual_error(y, t)

    def off(rows: Tensor, targets: Tensor) -> Float[Tensor, "row"]:
        far = (y[rows] - targets) / unit[rows]
        return far.square().mean(1).sqrt().nan_to_num(math.inf)

    errors = off(torch.arange(len(y)), t)
    bad, good = torch.nonzero(errors > WRONG)[:, 0], torch.nonzero(errors <= WRONG)[:, 0]
    if min(len(bad), len(good)) < FEWEST:
        return None
    first = torch.arange(len(bad)) % 3 == 0
    chooses, judges = bad[first], bad[~first]
    shift = float(errors[chooses].median())
    between = int(((errors > shift / 3) & (errors < 2 * shift / 3)).sum()) / len(bad)
    tried = [
        form for form in _forms(y[chooses], t[chooses]) if not form.is_fitted or between <= FEW
    ]

    def mends(form: TargetForm, rows: Tensor, turn: int = 0) -> Bool[Tensor, "row"]:
        return off(rows, form.of(t[rows]).roll(turn, 0)) <= RIGHT

    def mends_of(form: TargetForm, rows: Tensor) -> tuple[float, float]:
        """Return the fraction of rows that are right, and that with targets of other rows."""
        turned = [mends(form, rows, k) for k in range(1, min(len(rows), MOST_TURNS))]
        return (float(mends(form, rows).double().mean()),
                float(torch.stack(turned).double().mean()))  # fmt: skip

    gains = [hits - chance for hits, chance in (mends_of(form, chooses) for form in tried)]
    close = max(CLOSE, 2 / len(chooses))
    form = next(f for f, gain in zip(tried, gains, strict=True) if gain >= max(gains) - close)
    right, chance = mends_of(form, judges)
    hits = round(right * len(judges))
    mended = mends(form, bad)
    still = off(judges, form.of(t[judges]))[mends(form, judges)]
    usual = errors[good][errors[good] <= RIGHT]
    test = mannwhitneyu(still.numpy(), usual.numpy(), alternative="greater") if len(still) else None
    return RestoredTargets(
        form=form,
        rows=tuple(order[bad[mended]].tolist()),
        mended=right,
        chance=chance,
        n=len(judges),
        p=float(binom.sf(hits - 1, len(judges), max(chance, 1 / len(judges)))),
        wrong=len(bad) / len(some),
        rougher=1.0 if test is None else float(test.pvalue),
        is_tail=between > TAIL,
        trial=_trial(form, (y, t), (judges, good), order, mends(form, judges)),
    )


def _usual_error(
    answers: Float[Tensor, "row number"], truth: Float[Tensor, "row number"]
) -> Float[Tensor, "row number"]:
    """Return the standard deviation of normal errors, for answers of about a row's size.

    A quarter of the rows is right even where most targets are in another form. Errors often grow
    with the numbers themselves.
    """
    errors, n = (answers - truth).abs(), len(answers)
    least = SMALLEST * answers.std(0, correction=0).clamp(min=1e-300)
    bins = max(1, min(MOST_BINS, n // BIN))
    place = answers.argsort(0).argsort(0) * bins // n
    unit = torch.empty_like(errors)
    for j in range(answers.shape[1]):
        for k in range(bins):
            some = place[:, j] == k
            unit[some, j] = errors[some, j].quantile(0.25) / QUARTILE
    return unit.clamp(min=least)


def _trial(
    form: TargetForm,
    pair: tuple[Tensor, Tensor],
    rows: tuple[Int[Tensor, "row"], Int[Tensor, "row2"]],
    order: Int[Tensor, "row3"],
    mended: Bool[Tensor, "row"],
) -> Trial:
    """Return the trial of the form on wrong rows that judge; other rows stay as they are.

    Errors are relative to the variance of the targets as they are in the right rows.
    """
    (answers, truth), (judges, good) = pair, rows
    spread = truth[good].var(0, correction=0).clamp(min=1e-300)

    def score(which: Tensor, targets: Tensor) -> Float[Tensor, "row"]:
        return 1 - ((answers[which] - targets).square() / spread).mean(1)

    before, kept = score(judges, truth[judges]), score(good, truth[good])
    # A wrong row that this form does not mend may be of the usual source: it stays as it is.
    after = torch.where(mended, score(judges, form.of(truth[judges])), before)
    return Trial(
        f"the targets of some rows {form.words}",
        "labels",
        "error",
        order[torch.cat([judges, good])],
        torch.cat([before, kept]),
        torch.cat([after, kept]),
    )


KNOWN: Final = (
    TargetForm("with the other sign", "target = -target", lambda t: -t),
    TargetForm("as exponentials", "target = np.exp(target)", torch.exp),
    TargetForm("as exponentials less 1", "target = np.expm1(target)", torch.expm1),
    TargetForm("as powers of 10", "target = 10.0 ** target", lambda t: 10.0**t),
    TargetForm("as powers of 2", "target = 2.0**target", torch.exp2),
    TargetForm("as logarithms", "target = np.log(target)", torch.log),
    TargetForm("as logarithms of 1 plus them", "target = np.log1p(target)", torch.log1p),
    TargetForm("as logarithms to base 10", "target = np.log10(target)", torch.log10),
    TargetForm("as logarithms to base 2", "target = np.log2(target)", torch.log2),
    TargetForm("squared", "target = target ** 2", torch.square),
    TargetForm("as roots", "target = np.sqrt(target)", torch.sqrt),
    TargetForm(
        "from Fahrenheit to Celsius", "target = (target - 32) / 1.8", lambda t: (t - 32) / 1.8
    ),
    TargetForm("from Celsius to Fahrenheit", "target = 1.8 * target + 32", lambda t: 1.8 * t + 32),
)


def _forms(
    answers: Float[Tensor, "row number"], truth: Float[Tensor, "row number"]
) -> Iterator[TargetForm]:
    """Yield forms of targets, those of all numbers of a row first, then of the one furthest off."""
    yield from _of_all(answers, truth)
    if truth.shape[1] > 1:
        spread = truth.std(0, correction=0).clamp(min=1e-300)
        at = int(((answers - truth).abs() / spread).median(0).values.argmax())
        for form in _of_all(answers[:, [at]], truth[:, [at]]):
            yield _at(form, at)


def _at(form: TargetForm, at: int) -> TargetForm:
    """Return the form of one of several numbers."""

    def of(truth: Tensor) -> Tensor:
        changed = truth.clone()
        changed[:, at] = form.of(truth[:, [at]])[:, 0]
        return changed

    line = form.line.replace("target", f"target[:, {at}]")
    return TargetForm(f"{form.words} in number {at}", line, of, form.is_fitted)


def _of_all(
    answers: Float[Tensor, "row number"], truth: Float[Tensor, "row number"]
) -> Iterator[TargetForm]:
    """Yield forms of all numbers, those without fitted constants first."""
    yield from KNOWN
    ratio = (answers / truth).flatten()
    factor = float(ratio[torch.isfinite(ratio)].nanmedian()) if bool(truth.any()) else 1.0
    if factor and abs(math.log(abs(factor))) > math.log(LEAST_FACTOR):
        power = 10.0 ** round(math.log10(abs(factor)))
        near = power != 1.0 and abs(abs(factor) / power - 1) < NEAR_POWER
        factor = math.copysign(power, factor) if near else float(f"{factor:.4g}")
        words, line = f"times {factor:.4g}", f"target = {factor:.4g} * target"
        yield TargetForm(words, line, lambda t: factor * t, is_fitted=not near)
    n = truth.shape[1]
    for i, j in combinations(range(n if n <= MOST_NUMBERS else 0), 2):
        order = list(range(n))
        order[i], order[j] = j, i
        yield TargetForm(
            f"with numbers {i} and {j} exchanged",
            f"target = target[:, {order}]",
            lambda t, o=order: t[:, o],
        )
    more = (answers - truth).median(0).values
    if n == 1:
        yield TargetForm(
            f"plus {float(more):.4g}",
            f"target = target {float(more):+.4g}",
            lambda t: t + more,
            True,
        )
        slope = torch.cov(torch.cat([truth, answers], 1).T)
        a = float(slope[0, 1] / slope[0, 0].clamp(min=1e-300))
        b = float(answers.mean() - a * truth.mean())
        yield TargetForm(
            f"times {a:.4g} plus {b:.4g}",
            f"target = {a:.4g} * target {b:+.4g}",
            lambda t: a * t + b,
            True,
        )
