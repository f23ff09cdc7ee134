"""The model's answers to a few rows whose inputs are given in other forms."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import two_logits
from sonde.findings.evidence.trials.batch_norm_fits import CHUNK, Sums, fit_norm, in_chunks, observe
from sonde.findings.evidence.trials.input_forms import (
    FACTORS,
    LINES,
    Change,
    CodedChange,
    Inputs,
    changes,
    column_changes,
    column_factors,
    columns_of,
    line_of,
    move_words,
    one_column,
    picture_shape,
    pixel_move,
    pixel_moves,
)
from sonde.findings.evidence.trials.simplest_factor import factor_words, is_tied, simplest_factor
from sonde.findings.trial import CANNOT_RUN
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.streams.small_batches import SmallBatches

ROWS = 128
HALF: Final = 0.5
"""Part of the budget of trials that forms of the inputs may take."""
KIND: Final = ("form of the inputs", "forms of the inputs")


STANDARD: Final = "at mean 0 and variance 1"
MOST_WRITTEN: Final = 16
"""Columns or channels whose numbers are written in a line of code."""
MOST_ALONE: Final = 64
"""Columns of a table that are standardised one by one."""


def _as_given(x: Inputs) -> Inputs:
    return x


@dataclass(frozen=True, eq=False)
class Tried:
    """Answers of the model to inputs in one form.

    Parameters
    ----------
    words : str
        What was done to them; empty for the inputs as they are.
    score : Float[Tensor, "row"] or None
        Of each row with a label: 1 where the answer is right. Of each row with a target: 1 less the
        squared error over the variance of all targets, so that the mean is about R^2.
    misfit : float
        Of the first batch norm; NaN without one.
    scale : (float, float) or None
        Factor and offset that were applied to every number; None if the change was another one.
    range : (float, float) or None
        Factors of one column that do about as well, if this form is such a factor.
    factor : float
        That factor.
    change : callable
        Gives inputs in this way.
    logits : Float[Tensor, "row class"] or None
        Answers to the rows with a label.
    numbers : Float[Tensor, "row"] or None
        Answers to the rows with a target.
    code : str
        Lines of Python that make the change, if it has numbers of its own, or that make the two
        changes of a form on top of another form.
    single : Tried or None
        For such a form: the best single form, which it has to surpass on rows that chose neither.
    hides : bool
        Whether columns are held that another form makes small: it may undo nothing.
    """

    words: str
    score: Float[Tensor, "row"] | None
    misfit: float
    scale: tuple[float, float] | None = None
    range: tuple[float, float] | None = None
    factor: float = 1.0
    change: Change = _as_given
    logits: Float[Tensor, "row class"] | None = None
    numbers: Float[Tensor, "row"] | None = None
    code: str = ""
    single: "Tried | None" = None
    hides: bool = False

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns of a table that the form changes; empty for all."""
        return columns_of(self.change)

    @property
    def line(self) -> str:
        """The line of Python that changes the inputs in this way; empty if there is none."""
        if self.scale is not None:
            factor, offset = self.scale
            return f"x = {factor:.6g} * x {'-' if offset < 0 else '+'} {abs(offset):.6g}"
        if self.single is not None or self.code:
            return self.code
        return next((line for words, line in LINES.items() if words in self.words), "")


def is_changeable(batch: InputBatch) -> bool:
    """Return whether an example is one tensor of floating-point numbers."""
    values = [x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor)]
    return len(values) == 1 and values[0].is_floating_point() and values[0].ndim >= 2


def on_top(
    stream: LiveStream,
    small: SmallBatches,
    start: Tried,
    single: Tried,
    evidence: Evidence,
    part: float,
) -> Iterator[Tried]:
    """Yield the answers to inputs in other forms on top of the form ``start``."""
    x = start.change(numbers_of(small))
    others = {w: change for w, change in forms_of(x, evidence, True).items() if w}

    def composed(change: Change) -> Change:
        both = (start.columns, columns_of(change))
        columns = tuple(sorted({*both[0], *both[1]})) if all(both) else ()
        return CodedChange(lambda given: change(start.change(given)), "", columns)

    joined = {f"{start.words}, then {w}": (w, change) for w, change in others.items()}
    forms = {words: composed(change) for words, (_, change) in joined.items()}
    for tried in tried_forms(stream, small, forms, (), evidence, True, part):
        words, change = joined[tried.words]
        scale = _scale(x, change(x))
        last = Tried(
            words, None, math.nan, scale, code=standardising_code(words, x) or line_of(change)
        )
        lines = [line for line in (start.line, last.line) if line]
        code = f"{lines[0].split('  #')[0]}; {lines[1]}" if len(lines) == 2 else ""
        yield replace(tried, code=code, single=single)


def numbers_of(small: SmallBatches) -> Inputs:
    """Return the one tensor of floating-point numbers of all examples, at least in float32.

    Statistics of half precision are too coarse for tests, and NumPy has no bfloat16.
    """
    whole = small.together(range(len(small)))
    x = next(v for v in (*whole.args, *whole.kwargs.values()) if isinstance(v, Tensor))
    return x.float() if x.dtype.itemsize < torch.float32.itemsize else x


def forms_of(
    x: Inputs, evidence: Evidence, judged: bool, whole: Float[Tensor, "other *rest"] | None = None
) -> dict[str, Change]:
    """Return the forms to try, by description; the unchanged inputs come first."""
    names = evidence.data.inputs if judged and x.ndim == 2 else ()
    of_columns = column_changes(x, names)
    return {"": lambda x: x, **changes(x, not of_columns, whole), **of_columns}


def tried_forms(
    stream: LiveStream,
    small: SmallBatches,
    forms: dict[str, Change],
    norms: Sequence[tuple[str, nn.modules.batchnorm._BatchNorm]],
    evidence: Evidence,
    judged: bool,
    part: float = HALF,
) -> Iterator[Tried]:
    """Run the examples in each form that the budget allows, the unchanged inputs first."""
    whole, x = small.together(range(len(small))), numbers_of(small)
    for words, change in evidence.budget.affordable(forms, len(x), KIND, part):
        sums, answers = {name: Sums() for name, _ in norms}, []
        try:
            for batch in in_chunks(small, ROWS if x.ndim == 2 else CHUNK):
                answers.append(logits_of(observe(stream, _changed(batch, change), sums), stream))
        except CANNOT_RUN:  # e.g. images that are not square, turned
            continue
        fits = [fit_norm(name, module, sums[name]) for name, module in norms if sums[name].n]
        score = logits = numbers = None
        given = [a for a in answers if a is not None]
        if judged and len(given) == len(answers):
            score = score_rows_of(torch.cat(given), whole.order, whole.label, evidence)
            if evidence.data.target is None:
                logits = torch.cat(given)[whole.label >= 0]
            else:
                has_target = torch.isfinite(evidence.data.target[whole.order])
                numbers = torch.cat(given)[has_target, 0].double()
        scale = _scale(x, change(x))
        misfit = fits[0].misfit if fits else math.nan
        code = standardising_code(words, x) or line_of(change)
        yield Tried(
            words, score, misfit, scale, change=change, logits=logits, numbers=numbers, code=code
        )


def standardising_code(words: str, x: Inputs) -> str:
    """Return the line for columns or channels at mean 0 and variance 1, with their numbers.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 5.0], [3.0, 5.5]])
    >>> standardising_code("with each column at mean 0 and variance 1", x)
    'x = (x - torch.tensor([2, 5.25])) / torch.tensor([1.41421, 0.353553])'
    """
    if STANDARD not in words or x.shape[1] > MOST_WRITTEN:
        return ""
    rest = (0, *range(2, x.ndim))
    shape = f".reshape(-1{', 1' * (x.ndim - 2)})" if x.ndim > 2 else ""
    mean, std = (
        f"torch.tensor([{', '.join(f'{v:.6g}' for v in some.tolist())}]){shape}"
        for some in (x.mean(rest), x.std(rest).clamp(min=1e-12))
    )
    return f"x = (x - {mean}) / {std}"


def score_rows_of(
    logits: Float[Tensor, "row class"],
    order: Int[Tensor, "row"],
    label: Int[Tensor, "row"],
    evidence: Evidence,
) -> Float[Tensor, "row2"]:
    """Return the score of each row that can be judged."""
    data = evidence.data
    if data.target is None:
        answer = two_logits(logits).argmax(1)
        return (answer == label)[label >= 0].double()
    truth, every = data.target[order].double(), data.target.double()
    is_known = torch.isfinite(truth)
    error = (logits[:, 0].double() - truth)[is_known].square()
    return 1 - error / every[torch.isfinite(every)].var(correction=0)


def _scale(x: Tensor, changed: Tensor) -> tuple[float, float] | None:
    """Return factor and offset from the unchanged to the changed numbers, or None."""
    low, high = int(x.argmin()), int(x.argmax())
    a, b = (float(x.flatten()[i]) for i in (low, high))
    if a == b:
        return None
    fa, fb = (float(changed.flatten()[i]) for i in (low, high))
    factor = (fb - fa) / (b - a)
    offset = fa - factor * a
    near = torch.allclose(factor * x + offset, changed, rtol=1e-4, atol=1e-5 * max(1.0, abs(fb)))
    return (factor, offset) if near else None


def logits_of(output: object, stream: LiveStream) -> Float[Tensor, "row class"] | None:
    """Return the logits in a model's output, one row per example, or None."""
    key = stream.logits_key
    logits = None if key is None else find_logits(output, key)
    return None if logits is None or logits.ndim != 2 else logits.detach().cpu()


def _changed(batch: InputBatch, change: Change) -> InputBatch:
    def of(value: object) -> object:
        return change(value) if isinstance(value, Tensor) else value

    kwargs = {name: of(value) for name, value in batch.kwargs.items()}
    return replace(batch, args=tuple(of(value) for value in batch.args), kwargs=kwargs)


def simple_form(
    stream: LiveStream,
    small: SmallBatches,
    best: Tried,
    of_choosing: Callable[[Tried], Tensor],
    evidence: Evidence,
    group: Int[Tensor, "row"] | None = None,
) -> Tried:
    """Return a form with the simplest factor that does equally well, or with the best step.

    If one column at mean 0 and variance 1 does as well as all columns, it is the form.

    Groups of the rows that choose, such as copies, are the units of the test.
    """
    x, names = numbers_of(small), evidence.data.inputs
    picture = picture_shape(x)
    moves = {} if picture is None else pixel_moves(picture)
    if picture is not None and best.words in moves:
        return _nearest_move(stream, small, best, of_choosing, evidence, picture)
    if x.ndim == 2 and STANDARD in best.words:
        return _one_standardised(stream, small, best, of_choosing, evidence, group)
    factors = column_factors(names)
    if best.words not in factors:
        return best
    column, factor = factors[best.words]
    by_factor: dict[float, Tried | None] = {factor: best}

    def scores(by: float) -> Tensor | None:
        if by not in by_factor:
            forms = {f"with {factor_words(names[column], by)}": one_column(column, by, 0.0)}
            by_factor[by] = next(tried_forms(stream, small, forms, (), evidence, True), None)
        form = by_factor[by]
        return None if form is None or form.score is None else of_choosing(form)

    simplest = simplest_factor(scores, factor, [f for u in FACTORS for f in (u, 1 / u)], group)
    chosen = by_factor[simplest.factor] or best
    return replace(chosen, range=(simplest.low, simplest.high), factor=simplest.factor)


def _one_standardised(
    stream: LiveStream,
    small: SmallBatches,
    best: Tried,
    of_choosing: Callable[[Tried], Tensor],
    evidence: Evidence,
    group: Int[Tensor, "row"] | None,
) -> Tried:
    """Return the form of the one column that does as well as all columns, or the form of all."""
    x, names = numbers_of(small), evidence.data.inputs
    n = x.shape[1]
    if not 1 < n <= MOST_ALONE:
        return best
    mean, std = x.mean(0), x.std(0)
    places = names if len(names) == n else [f"column {i}" for i in range(n)]
    forms = {
        f"with {places[i]} {STANDARD}": one_column(i, float(1 / std[i]), float(-mean[i] / std[i]))
        for i in range(n)
        if float(std[i]) > 0
    }
    alone = [
        t for t in tried_forms(stream, small, forms, (), evidence, True) if t.score is not None
    ]
    if not alone:
        return best
    one = max(alone, key=lambda form: float(of_choosing(form).mean()))
    if not is_tied(of_choosing(one), of_choosing(best), group):
        return best
    return replace(one, code=line_of(one.change))


def _nearest_move(
    stream: LiveStream,
    small: SmallBatches,
    best: Tried,
    of_choosing: Callable[[Tried], Tensor],
    evidence: Evidence,
    picture: Sequence[int],
) -> Tried:
    """Return the image shift with the best step near that of the form, by halving the step."""
    step, dim = pixel_moves(picture)[best.words]
    by = abs(step) // 2
    while by:
        steps = [step - by, step + by]
        forms = {move_words(s, dim): pixel_move(picture, s, dim) for s in steps if s}
        for tried in tried_forms(stream, small, forms, (), evidence, True):
            if tried.score is not None and of_choosing(tried).mean() > of_choosing(best).mean():
                best, step = tried, next(s for s in steps if move_words(s, dim) == tried.words)
        by //= 2
    return best
