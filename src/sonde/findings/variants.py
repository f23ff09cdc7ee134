"""The model on the same inputs given in other ways, and what its batch norms were trained on.

Run after the pass on few rows. The norms' inputs are always looked at. Other inputs are tried only
if the model is wrong far more often than a probe of its states, if it is wrong on a tenth of the
rows, or if the inputs of its first norm do not fit its statistics. From 15 wrong rows on, these
rows are also tried by themselves.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.core.site import Site
from sonde.findings._class_offset import mended_by_offset
from sonde.findings._input_forms import LINES, Change, Inputs, changes, column_changes
from sonde.findings._number_answers import number_answers, number_rows
from sonde.findings._shared import one_per_group, shared_rows, two_logits
from sonde.findings.answers import class_answers, compared_answers, right_rows
from sonde.findings.evidence import Evidence
from sonde.findings.self_check import chosen_examples
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import SmallBatches, small_batches

ROWS, CHUNK, LEAST = 128, 16, 24
FEWEST = 15  # wrong rows, a third of which choose a form
WRONG = 2 / 3  # of the targets' spread: how far off a number is wrong; half as far off it is right
TIED, HOPELESS = 0.1, 0.5
USUAL_WEIGHTS = 2_000_000
GAP, ERRORS = 0.1, 3.0
MISFIT = 0.125  # of a mean that is off by half a standard deviation


@dataclass(frozen=True)
class NormFit:
    """A batch norm's running statistics beside the rows that reach it.

    Parameters
    ----------
    path : str
    misfit : float
        Relative entropy in nats between Gaussians of these means and variances, median of channels.
    shift : float
        Distance of the means in running standard deviations, median of channels.
    ratio : float
        Variance over the running one, median of channels.
    unmoved : bool
        Whether the buffers are still those of a new module: mean 0 and variance 1.
    untrained : bool
        Whether weight and bias are still those of a new module: 1 and 0.
    """

    path: str
    misfit: float
    shift: float
    ratio: float
    unmoved: bool
    untrained: bool


@dataclass(frozen=True, eq=False)
class Tried:
    """What the model makes of inputs given in one way.

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
    """

    words: str
    score: Float[Tensor, "row"] | None
    misfit: float
    scale: tuple[float, float] | None = None

    @property
    def line(self) -> str:
        """The line of Python that gives the inputs in this way; empty if there is none."""
        if self.scale is not None:
            factor, offset = self.scale
            return f"x = {factor:.6g} * x {'-' if offset < 0 else '+'} {abs(offset):.6g}"
        return next((line for words, line in LINES.items() if words in self.words), "")


@dataclass(frozen=True, eq=False)
class MendedRows:
    """The form in which the model is right on most of the rows that it gets wrong.

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
    """

    form: Tried
    right: float
    nearer: float
    p: float
    n: int
    wrong: float
    offset: float = 0.0
    kept: float = 0.0


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
    mended : tuple of MendedRows
        The form that brings wrong rows nearest to right ones, and the form that mends most of them.
        Empty if the model gets too few rows wrong, or if no form mends half of them.
    """

    norms: tuple[NormFit, ...] = ()
    tried: tuple[Tried, ...] = ()
    probe: float = math.nan
    n_rows: int = 0
    mended: tuple[MendedRows, ...] = ()


def variant_evidence(stream: LiveStream, evidence: Evidence) -> VariantEvidence:
    """Run the model on a few rows of its data, and on the same rows given otherwise."""
    norms, probe = _norms(stream), _better_probe(evidence)
    judged = not math.isnan(probe) or _often_wrong(evidence)
    rows = _wrong_and_right(evidence) if judged or _is_small(evidence) else None
    if not norms and not judged and rows is None:
        return VariantEvidence()
    small = small_batches(
        stream.model, stream.inputs, chosen_examples(stream, ROWS, evidence.data.seed), None
    )
    if len(small) < LEAST:
        return VariantEvidence()
    with untouched(stream.model.module), torch.no_grad():
        fits = _fits(stream, small, norms)
        first = fits[0].misfit if fits else 0.0
        tried: tuple[Tried, ...] = ()
        changeable = _changeable(small.singles[0])
        if changeable and (first > MISFIT or judged):
            forms = _forms(_numbers(small), evidence, judged)
            tried = tuple(_tried(stream, small, forms, norms[:1], evidence, judged))
        mended = _mended(stream, evidence, rows) if changeable and rows is not None else ()
    return VariantEvidence(fits, tried, probe, len(small), mended)


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


@dataclass(frozen=True)
class _Judged:
    """Examples of different groups by planned order, at most 128 wrong and 128 right ones.

    ``wrong`` and ``right`` hold the examples by the model's answer as they are given. ``share`` is
    the share of all wrong rows, ``least`` the score above which an answer is right.
    """

    wrong: list[int]
    right: list[int]
    share: float
    least: float


def _wrong_and_right(evidence: Evidence) -> _Judged | None:
    """Return examples that the model gets wrong and right; None below 15 of either.

    A number is wrong beyond two thirds of the targets' spread and three usual errors.
    """
    numbers, shared, limit = number_rows(evidence), shared_rows(evidence), WRONG
    if not isinstance(numbers, str):
        where, said, truth = numbers
        off = torch.full((len(shared.group),), math.nan, dtype=torch.float64)
        off[where] = (said - truth).abs() / truth.std(correction=0)
        limit = max(limit, 3 * 1.4826 * float(off.nanmedian()))
    elif (known := right_rows(evidence)) is not None:
        off = 1 - known
    else:
        return None
    order, one = shared.order, one_per_group(shared.group)
    bad, good = one[off[one] > limit], one[off[one] < limit / 2]
    if order is None or min(len(bad), len(good)) < FEWEST:
        return None
    wrong, right = (order[rows[:ROWS]].tolist() for rows in (bad, good))
    share = len(bad) / int(torch.isfinite(off[one]).sum())
    return _Judged(wrong, right, share, 1 - (limit / 2) ** 2)


def _mended(stream: LiveStream, evidence: Evidence, rows: _Judged) -> tuple[MendedRows, ...]:
    """Look for the form of the wrong rows in which the model is right.

    Among forms that mend about equally many of the choosing rows, the first result is the form
    that brings these rows nearest to right rows, the second the form that mends most.
    """
    bad, good = (
        small_batches(stream.model, stream.inputs, which, None)
        for which in (rows.wrong, rows.right)
    )
    if min(len(bad), len(good)) < FEWEST:
        return ()
    x, others = _numbers(bad), _numbers(good)
    if x.shape[1:] != others.shape[1:]:
        return ()
    forms, chooses = _forms(x, evidence, True, others), torch.arange(len(x)) % 3 == 0
    tried = {
        t: (t.score > rows.least).double()
        for t in _tried(stream, bad, forms, (), evidence, True)
        if t.score is not None
    }
    most = max((float(hit[chooses].mean()) for hit in tried.values()), default=0.0)
    if most < HOPELESS:
        return ()
    scale = others.std(0) if evidence.data.inputs and x.ndim == 2 else torch.ones(())
    scale = torch.where(scale > 0, scale, 1.0)

    def far(rows: Inputs) -> Float[Tensor, "row"]:
        return torch.cdist((rows / scale).flatten(1), (others[::2] / scale).flatten(1)).amin(1)

    tied = [form for form, hit in tried.items() if float(hit[chooses].mean()) >= most - TIED]
    offset = _by_offset(stream, bad, good, chooses) if evidence.data.target is None else 0.0

    def tones(rows: Inputs) -> Float[Tensor, "row"]:
        return torch.cdist(rows.flatten(1).sort(1).values, levels).median(1).values

    levels = others[::2].flatten(1).sort(1).values
    measures = (far,) if evidence.data.inputs and x.ndim == 2 else (far, tones)

    def made(form: Tried) -> MendedRows:
        change, held = forms[form.words], tried[form][~chooses]
        gain, usual = max(
            ([m(given) - m(change(given)) for given in (x[~chooses], others[1::2])]
             for m in measures), key=lambda pair: float((pair[0] > 0).double().mean()),
        )  # fmt: skip
        (still,) = _tried(stream, good, {form.words: change}, (), evidence, True)
        kept = 0.0 if still.score is None else float((still.score > rows.least).double().mean())
        return MendedRows(
            form=form,
            right=float(held.mean()),
            nearer=float((gain > 0).double().mean()),
            p=float(mannwhitneyu(gain, usual, alternative="greater").pvalue),
            n=len(held),
            wrong=rows.share,
            offset=offset,
            kept=kept,
        )

    near = min(tied, key=lambda form: float(far(forms[form.words](x[chooses])).mean()))
    best = max(tied, key=lambda form: float(tried[form][chooses].mean()))
    return (made(near),) if best is near else (made(near), made(best))


def _by_offset(stream: LiveStream, bad: SmallBatches, good: SmallBatches, chooses: Tensor) -> float:
    """Return the share of the wrong rows that a constant on one class's logit mends."""
    given = [_given(stream, small) for small in (bad, good)]
    truth = bad.together(range(len(bad))).label
    if given[0] is None or given[1] is None or len(truth) != len(chooses):
        return 0.0
    wrong, right = (two_logits(logits).double() for logits in given if logits is not None)
    return mended_by_offset(wrong, truth.clamp(max=wrong.shape[1] - 1), right, chooses)


def _given(stream: LiveStream, small: SmallBatches) -> Float[Tensor, "row class"] | None:
    """Return the logits of rows as they are; None if they are not known."""
    found = [_logits(_observe(stream, batch, {}), stream) for batch in _chunks(small)]
    known = [logits for logits in found if logits is not None]
    return torch.cat(known) if len(known) == len(found) else None


def _norms(stream: LiveStream) -> list[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    """Return the batch norms with running statistics that ran, in order of execution."""
    found = [
        (name, module)
        for name, module in stream.probe.names.modules.items()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and not module.training
        and stream.probe.calls(name) == 1
    ]
    return sorted(found, key=lambda pair: stream.probe.order(pair[0], 0, "out"))


def _chunks(small: SmallBatches, size: int = CHUNK) -> Iterator[InputBatch]:
    for start in range(0, len(small), size):
        yield small.together(range(start, min(start + size, len(small))))


def _fits(
    stream: LiveStream,
    small: SmallBatches,
    norms: Sequence[tuple[str, nn.modules.batchnorm._BatchNorm]],
) -> tuple[NormFit, ...]:
    sums = {name: _Sums() for name, _ in norms}
    for batch in _chunks(small) if norms else ():
        _observe(stream, batch, sums)
    return tuple(_fit(name, module, sums[name]) for name, module in norms if sums[name].n)


class _Sums:
    """Sums and sums of squares of the channels that reach a norm, less its running mean."""

    def __init__(self) -> None:
        self.n, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor, about: Tensor) -> None:
        rows = x.movedim(1, -1).reshape(-1, x.shape[1]).double() - about.double()
        self.n += len(rows)
        self.first, self.second = self.first + rows.sum(0), self.second + rows.square().sum(0)


def _observe(stream: LiveStream, batch: InputBatch, sums: dict[str, _Sums]) -> object:
    """Run a batch, add what reaches the norms to their sums, and return the model's output."""
    sites = [Site(name, 0, "in") for name in sums]
    watched = watch(
        stream.model.module, batch, sites,
        as_found=not stream.model.module.training, place=stream.probe.place,
    )  # fmt: skip
    for site in sites:
        x = watched.tensors.get(str(site))
        mean = stream.probe.names.modules[site.path].get_buffer("running_mean")
        if x is not None and x.ndim >= 2 and x.shape[1] == len(mean):
            sums[site.path].add(x.cpu(), mean.cpu())
    return watched.output


def _fit(name: str, module: nn.modules.batchnorm._BatchNorm, sums: _Sums) -> NormFit:
    mean, running = module.get_buffer("running_mean").cpu(), module.get_buffer("running_var").cpu()
    usual = running.double() + module.eps
    shift = sums.first / sums.n
    variance = (sums.second / sums.n - shift.square()).clamp(min=0) + module.eps
    ratio = variance / usual
    misfit = 0.5 * (ratio + shift.square() / usual - 1 - ratio.log())
    affine = [] if module.weight is None else [module.weight == 1, module.bias == 0]
    return NormFit(
        path=name,
        misfit=float(misfit.nan_to_num(math.inf).median()),
        shift=float((shift.abs() / usual.sqrt()).median()),
        ratio=float(ratio.median()),
        unmoved=bool((mean == 0).all() and (running == 1).all()),
        untrained=all(bool(same.all()) for same in affine),
    )


def _changeable(batch: InputBatch) -> bool:
    """Return whether an example is one tensor of floating-point numbers."""
    values = [x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor)]
    return len(values) == 1 and values[0].is_floating_point() and values[0].ndim >= 2


def _numbers(small: SmallBatches) -> Inputs:
    """Return the one tensor of floating-point numbers of all examples."""
    whole = small.together(range(len(small)))
    return next(v for v in (*whole.args, *whole.kwargs.values()) if isinstance(v, Tensor))


def _forms(
    x: Inputs, evidence: Evidence, judged: bool, whole: Float[Tensor, "other *rest"] | None = None
) -> dict[str, Change]:
    """Return the forms to try, keyed by their words; the unchanged inputs come first."""
    names = evidence.data.inputs if judged and x.ndim == 2 else ()
    of_columns = column_changes(x, names)
    return {"": lambda x: x, **changes(x, not of_columns, whole), **of_columns}


def _tried(
    stream: LiveStream,
    small: SmallBatches,
    forms: dict[str, Change],
    norms: Sequence[tuple[str, nn.modules.batchnorm._BatchNorm]],
    evidence: Evidence,
    judged: bool,
) -> Iterator[Tried]:
    whole, x = small.together(range(len(small))), _numbers(small)
    for words, change in forms.items():
        sums, answers = {name: _Sums() for name, _ in norms}, []
        try:
            for batch in _chunks(small, ROWS if x.ndim == 2 else CHUNK):
                answers.append(_logits(_observe(stream, _changed(batch, change), sums), stream))
        except (RuntimeError, ValueError):  # e.g. images that are not square, turned
            continue
        fits = [_fit(name, module, sums[name]) for name, module in norms if sums[name].n]
        score = None
        given = [a for a in answers if a is not None]
        if judged and len(given) == len(answers):
            score = _scored(torch.cat(given), whole, evidence)
        scale = _scale(x, change(x))
        yield Tried(words, score, fits[0].misfit if fits else math.nan, scale)


def _scored(
    logits: Float[Tensor, "row class"], whole: InputBatch, evidence: Evidence
) -> Float[Tensor, "row"]:
    """Return the score of each row that can be judged."""
    data = evidence.data
    if data.target is None:
        answer = two_logits(logits).argmax(1)
        return (answer == whole.label)[whole.label >= 0].double()
    truth, every = data.target[whole.order].double(), data.target.double()
    known = torch.isfinite(truth)
    error = (logits[:, 0].double() - truth)[known].square()
    return 1 - error / every[torch.isfinite(every)].var(correction=0)


def _scale(x: Tensor, changed: Tensor) -> tuple[float, float] | None:
    """Return the factor and offset that turn all numbers into the changed ones, or None."""
    low, high = int(x.argmin()), int(x.argmax())
    a, b = (float(x.flatten()[i]) for i in (low, high))
    if a == b:
        return None
    fa, fb = (float(changed.flatten()[i]) for i in (low, high))
    factor = (fb - fa) / (b - a)
    offset = fa - factor * a
    near = torch.allclose(factor * x + offset, changed, rtol=1e-4, atol=1e-5 * max(1.0, abs(fb)))
    return (factor, offset) if near else None


def _logits(output: object, stream: LiveStream) -> Float[Tensor, "row class"] | None:
    key = stream.logits_key
    logits = None if key is None else find_logits(output, key)
    return None if logits is None or logits.ndim != 2 else logits.detach().cpu()


def _changed(batch: InputBatch, change: Change) -> InputBatch:
    def of(value: object) -> object:
        return change(value) if isinstance(value, Tensor) else value

    kwargs = {name: of(value) for name, value in batch.kwargs.items()}
    return replace(batch, args=tuple(of(value) for value in batch.args), kwargs=kwargs)
