"""Errors of a regression model, compared with a linear probe and with the mean."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.engine.errorbars import group_error
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.trial import Trial, chooses
from sonde.stats.folds import folds_of
from sonde.stats.linear_classifiers import metric_times

LEAST: Final = 15  # rows on each half
NEAR_POWER: Final = 0.2  # a factor so close to a power of ten is taken for it
NEAR_ONE: Final = 0.15  # a spread so close to 1 is that of standardised numbers
TENTH: Final = 1.1
HALF_MORE: Final = 1.5  # error of a change that is known beside that of fitted numbers
UNDEFINED: Final = 0.1  # rows for which a form, as a logarithm, may have no value


@dataclass(frozen=True, eq=False)
class NumberAnswers:
    """A regression model's squared errors on the sampled rows that have a target.

    Parameters
    ----------
    own : Float[Tensor, "row"]
        Of the model.
    mean : Float[Tensor, "row"]
        Of always saying the mean.
    probes : tuple of (str, Float[Tensor, "row"])
        Of a held-out linear regression at each site.
    group : Int[Tensor, "row"]
    correlation : float
        Of the model's numbers with the targets, over these rows.
    """

    own: Float[Tensor, "row"]
    mean: Float[Tensor, "row"]
    probes: tuple[tuple[str, Float[Tensor, "row"]], ...]
    group: Int[Tensor, "row"]
    correlation: float

    @property
    def best(self) -> int:
        """Index of the site whose probe has the least error; the last site in a tie."""
        errors = [float(e.mean()) for _, e in self.probes]
        return min(range(len(errors)), key=lambda i: (errors[i], -i))


@once
def number_rows(evidence: Evidence) -> tuple[Tensor, Tensor, Tensor] | str:
    """Return the shared rows with a target, the answers, and the targets, or a reason if none."""
    target = evidence.data.target
    if target is None or not evidence.sites:
        return "the data have no labels"
    shared = shared_rows(evidence)
    logits, order = shared.column("logits"), shared.order
    if logits is None or order is None or logits.shape[1] != 1:
        return "the labels are numbers, but the model does not return a single number for a row"
    answers, truth = logits[:, 0].double(), target[order].double()
    where = torch.nonzero(torch.isfinite(answers) & torch.isfinite(truth)).flatten()
    answers, truth = answers[where], truth[where]
    if len(torch.unique(shared.group[where])) < 2 or not bool(truth.std() > 0):
        return "the targets are all equal, or of one group"
    return where, answers, truth


@once
def number_answers(evidence: Evidence) -> NumberAnswers | str:
    """Return a regression model's errors, or the reason why there are none."""
    numbers = number_rows(evidence)
    if isinstance(numbers, str):
        return numbers
    where, answers, truth = numbers
    shared = shared_rows(evidence)
    group = shared.group[where]
    probes = tuple(
        (site.schema.key, (held_out_numbers(shared.x(i)[where], truth, group) - truth).square())
        for i, site in enumerate(evidence.sites)
    )
    return NumberAnswers(
        own=(answers - truth).square(),
        mean=(truth - truth.mean()).square(),
        probes=probes,
        group=group,
        correlation=float(torch.corrcoef(torch.stack([answers, truth]))[0, 1].nan_to_num()),
    )


Form = Callable[[Tensor], Tensor]
FORMS: Final[Mapping[str, tuple[str, Form]]] = {
    "the exponential of its numbers": ("y = y.exp()", torch.exp),
    "the exponential less 1 of its numbers": ("y = y.expm1()", torch.expm1),
    "10 to the power of its numbers": ("y = 10 ** y", lambda y: 10.0**y),
    "2 to the power of its numbers": ("y = y.exp2()", torch.exp2),
    "the square of its numbers": ("y = y.square()", torch.square),
    "the logarithm of its numbers": ("y = y.log()", torch.log),
    "the logarithm to base 2 of its numbers": ("y = y.log2()", torch.log2),
    "the logarithm to base 10 of its numbers": ("y = y.log10()", torch.log10),
    "the logarithm of 1 plus its numbers": ("y = y.log1p()", torch.log1p),
    "the root of its numbers": ("y = y.sqrt()", torch.sqrt),
    "1 divided by its numbers": ("y = 1 / y", torch.reciprocal),
    "its numbers from Celsius to Fahrenheit": ("y = 1.8 * y + 32", lambda y: 1.8 * y + 32),
    "its numbers from Fahrenheit to Celsius": ("y = (y - 32) / 1.8", lambda y: (y - 32) / 1.8),
}
LOGARITHMS: Final[Mapping[str, tuple[str, Form]]] = {
    "the logarithm": ("y = y.log()", torch.log),
    "the logarithm to base 10": ("y = y.log10()", torch.log10),
    "the logarithm to base 2": ("y = y.log2()", torch.log2),
    "the negative": ("y = -y", torch.neg),
}
"""Forms with one constant: a logarithm of numbers in another unit, or what is left of a whole."""


@dataclass(frozen=True, eq=False)
class Rescaled:
    """A change of a model's outputs that fits the targets: as text, and as code on ``y``.

    ``error`` is the root mean square error on the rows that the change was not fitted on, ``trial``
    what it makes of these rows. ``is_known``: somebody can have done this to the targets; fitted
    numbers make up for part of whatever is wrong.
    """

    words: str
    line: str
    error: float
    is_known: bool
    trial: Trial


def rescaled(evidence: Evidence) -> Rescaled | None:
    """Return the simplest change of a regression's outputs that fits the targets, or None.

    From simple to complex: a form without a parameter, a factor, an offset, both, and a form with
    both. Each is fitted on half of the groups. Known changes whose error on the other half is at
    most a half above the smallest error come first; among these, or among all, the simplest change
    is taken whose error is at most a tenth above the smallest.
    """
    numbers = number_rows(evidence)
    if isinstance(numbers, str):
        return None
    where, answers, truth = numbers
    shared = shared_rows(evidence)
    fits = chooses(shared.group[where])
    if int(fits.sum()) < LEAST or int((~fits).sum()) < LEAST:
        return None
    order, spread = shared.order, float(truth.var(correction=0))
    assert order is not None  # number_rows asks for it
    own = 1 - (answers - truth)[~fits].square() / spread
    fitted: list[Rescaled] = []
    limits: list[float] = []
    for form in forms_fitted(answers[fits], truth[fits]):
        squares = (form.of(answers[~fits]) - truth[~fits]).square()
        defined = torch.isfinite(squares)
        if float((~defined).double().mean()) <= UNDEFINED:
            squares = torch.where(defined, squares, spread)  # such a row gets the mean
            scope = "answers" if form.is_known else "head"
            rows, after = order[where][~fits], 1 - squares / spread
            trial = Trial(form.words, scope, "error", rows, own, after, is_constant=form.is_offset)
            error = float(squares.mean()) ** 0.5
            fitted.append(Rescaled(form.words, form.line, error, form.is_known, trial))
            limits.append(TENTH if form.is_fitted else HALF_MORE)
    least = min(f.error for f in fitted)
    usual = [f for f, limit in zip(fitted, limits, strict=True)
             if f.is_known and f.error <= limit * least]  # fmt: skip
    able = usual or fitted
    best = min(f.error for f in able)
    return next(f for f in able if f.error <= TENTH * best)


@dataclass(frozen=True)
class AnswerForm:
    """A change of outputs: as text, as code on ``y``, and whether it is a plausible mistake.

    A constant that is fitted makes up for part of whatever is wrong; ``is_offset`` says that
    nothing but a constant is added.
    """

    words: str
    line: str
    of: Form
    is_known: bool = False
    is_fitted: bool = False
    is_offset: bool = False


def forms_fitted(x: Float[Tensor, "row"], y: Float[Tensor, "row"]) -> list[AnswerForm]:
    """Return changes that could turn ``x`` into targets ``y``; the simplest first."""
    forms = [AnswerForm(words, line, form, True) for words, (line, form) in FORMS.items()]
    factor = float((x * y).sum() / x.square().sum().clamp(min=1e-300))
    power = 10.0 ** round(math.log10(abs(factor))) if factor else 1.0
    near = abs(abs(factor) / power - 1) < NEAR_POWER
    factor = math.copysign(power, factor) if near else factor
    times = f"{factor:.4g}"
    of_factor = AnswerForm(
        f"its numbers times {times}", f"y = {times} * y", lambda y: factor * y, near
    )
    more = float((y - x).mean())
    of_offset = AnswerForm(
        f"{more:.4g} added to its numbers", f"y = y {more:+.4g}", lambda y: y + more,
        is_known=True, is_fitted=True, is_offset=True,
    )  # fmt: skip
    slope, offset = _line(x, y)
    of_line = AnswerForm(
        f"its numbers times {slope:.4g} plus {offset:.4g}", f"y = {slope:.4g} * y {offset:+.4g}",
        lambda y: slope * y + offset, _is_standardised(x) or _is_standardised(y),
    )  # fmt: skip
    forms += [of_factor, of_offset, *_with_constant(x, y), of_line]
    c, d = _line(x, y.log())
    forms.append(AnswerForm(
        f"the exponential of {c:.4g} times its numbers plus {d:.4g}",
        f"y = ({c:.4g} * y {d:+.4g}).exp()", lambda y: (c * y + d).exp(), _is_standardised(x),
    ))  # fmt: skip
    for words, (line, form) in FORMS.items():
        formed = form(x)
        kept = torch.isfinite(formed)
        if int(kept.sum()) < LEAST:
            continue
        a, b = _line(formed[kept], y[kept])
        forms.append(AnswerForm(
            f"{a:.4g} times {words} plus {b:.4g}", f"{line}; y = {a:.4g} * y {b:+.4g}",
            lambda y, f=form, a=a, b=b: a * f(y) + b, _is_standardised(y),
        ))  # fmt: skip
    return forms


def _with_constant(x: Float[Tensor, "row"], y: Float[Tensor, "row"]) -> Iterator[AnswerForm]:
    """Yield logarithms and the negative with a constant added."""
    for words, (line, form) in LOGARITHMS.items():
        less = y - form(x)
        kept = torch.isfinite(less)
        if int(kept.sum()) < LEAST:
            continue
        more = float(less[kept].mean())
        yield AnswerForm(
            f"{words} of its numbers plus {more:.4g}", f"{line}; y = y {more:+.4g}",
            lambda y, f=form, more=more: f(y) + more, True, True,
        )  # fmt: skip


def _is_standardised(x: Float[Tensor, "row"]) -> bool:
    """Return whether numbers look standardised: mean 0 and variance 1, or range 0 to 1."""
    mean, spread = float(x.mean()), float(x.std())
    centred = abs(mean) < 4 * spread / len(x) ** 0.5 and abs(spread - 1) < NEAR_ONE
    low, high = float(x.min()), float(x.max())
    return centred or (-0.01 < low < 0.1 and 0.9 < high < 1.01 and spread > 0)


def _line(x: Float[Tensor, "row"], y: Float[Tensor, "row"]) -> tuple[float, float]:
    """Return slope and offset of the least-squares line from ``x`` to ``y``."""
    slope = float(torch.cov(torch.stack([x, y]))[0, 1] / x.var().clamp(min=1e-300))
    return slope, float(y.mean()) - slope * float(x.mean())


def root_mean(squares: Float[Tensor, "row"], group: Int[Tensor, "row"]) -> tuple[float, float]:
    """Return the square root of the mean, and its standard error over groups."""
    root = float(squares.mean()) ** 0.5
    se = group_error(squares / len(squares), group, len(torch.unique(group)))
    return root, se / (2 * root) if root > 0 else 0.0


def held_out_numbers(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row"], group: Int[Tensor, "row"]
) -> Float[Tensor, "row"]:
    """Return the prediction for each row by a linear regression fitted without the row's fold."""
    predicted, fold = torch.full_like(y, float(y.mean())), folds_of(group)
    for f in torch.unique(fold).tolist():
        held = fold == f
        if bool(held.all()):
            continue
        rows, mean, level = x[~held], x[~held].mean(0), y[~held].mean()
        centred, n = rows - mean, len(rows)
        shared = centred.T @ (y[~held] - level)[:, None] / n
        predicted[held] = (
            level + ((x[held] - mean) @ metric_times(centred.T @ centred, n, shared))[:, 0]
        )
    return predicted
