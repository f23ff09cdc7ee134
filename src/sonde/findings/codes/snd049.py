"""SND049: data that change at one row of the file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import fisher_exact, mannwhitneyu, norm, rankdata, spearmanr

from sonde.data.images import PICTURE_COLUMNS
from sonde.data.numbers import as_number
from sonde.findings.evidence.answers.answers import answer_columns, judge_heads, right_rows
from sonde.findings.evidence.answers.head_answers import Heads
from sonde.findings.evidence.answers.number_answers import number_rows
from sonde.findings.evidence.inputs.row_dependence import rows_per_block, state_series
from sonde.findings.evidence.inputs.weak_groups import file_names
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import Measure, Trial, chooses
from sonde.findings.words.places import sentence
from sonde.findings.words.text import number, percent, plural, shortened

LEAST_ROWS: Final = 80
MARGIN: Final = 0.05
MOST_COLUMNS: Final = 100
NEAR: Final = 1 / 3  # spreads of the targets that a right number may be off
MANY: Final = ("label_accuracy", "pixel_accuracy")
"""Measures of heads with several answers a row."""
SLIPS: Final = (1, -1, 2, -2, 3, -3)
Kind = Literal["error", "entries", "fit", "offset", "stuck", "value", "missing", "level"]
OF_ANSWERS: Final = ("error", "entries", "fit", "offset")
OF_CELLS: Final = ("stuck", "value", "missing")
RANKED: Final = ("level", "fit", "entries", "offset")
APART: Final = {"level": 0.4, "offset": 0.3}
"""How far the chance that a later number is the larger one must lie from one half."""
STRETCHES: Final = 2.5
"""Blocks of alike states that either side of a change of the answers takes."""
FEWEST: Final = 5  # rows on either side of an offset that is undone
LESS: Final = 0.3  # fall of the correlation of numbers with their targets


@dataclass(frozen=True)
class Change:
    """A change that begins at one row of the file.

    Parameters
    ----------
    kind : str
    name : str
        The column; "the answers" for errors.
    row : int
        The first row after the change, by planned order.
    before, after : float
        Share of rows on either side of the change; for a level, the median; for an offset, the
        median of target minus answer; for a fit, the correlation of the model's numbers with the
        targets.
    p : float
        Chance on the rows that did not choose the place, corrected for all series.
    value : float
        The value of a column that holds one value.
    slip : int
        By how many rows labels slip from there on; 0 if they do not.
    mended : float
        Accuracy from there on with the labels moved back.
    """

    kind: Kind
    name: str
    row: int
    before: float
    after: float
    p: float
    value: float = 0.0
    slip: int = 0
    mended: float = 0.0
    trial: Trial | None = None


@dataclass(frozen=True, eq=False)
class _Series:
    """A series of numbers in file order; unknown numbers are NaN."""

    kind: Kind
    name: str
    x: Float[np.ndarray, "row"]
    value: float = 0.0
    pair: Float[np.ndarray, "2 row"] | None = None
    """For a fit: the model's numbers and the targets."""


@once
def changes_in_file(evidence: Evidence) -> tuple[Change, ...] | str:
    """Return the changes along the file, or the reason why they cannot be tested."""
    shared, data = shared_rows(evidence), evidence.data
    if shared.order is None or (data.piece is not None and bool((data.piece > 0).any())):
        return "the rows are pieces of texts, or their order is not known"
    if data.grouped:
        return "rows come in groups, and the order inside a group has a meaning"
    order = np.argsort(shared.order.numpy(), kind="stable")
    if len(order) < LEAST_ROWS:
        return f"needs {LEAST_ROWS} rows, {len(order)} present"
    series = list(_series(evidence, order))
    if not series:
        return "neither correct answers nor columns are known"
    examples = shared.order.numpy()[order]
    label = shared.column("label")
    classes = None if label is None else label.numpy()[order]
    counts = Counter(one.kind in OF_ANSWERS for one in series)
    states = state_series(evidence, order)
    cuts, kept = list[int](), list[Change]()
    for one in sorted(series, key=lambda one: one.kind not in OF_CELLS):
        beside = None if one.kind in OF_CELLS else states
        change = _change(one, examples, classes, counts[one.kind in OF_ANSWERS], beside, cuts)
        if change is not None:
            tried = _with_offset if change.kind == "offset" else _with_slip
            kept.append(tried(change, evidence, order))
            cuts.append(int(np.searchsorted(examples, change.row)))
    ordered = sorted(kept, key=_rank)
    first: dict[str, Change] = {}
    for change in ordered:
        old = first.setdefault(change.name, change)
        if {old.kind, change.kind} == {"stuck", "value"}:
            value = change if change.kind == "value" else old
            stuck = old if change.kind == "value" else change
            first[change.name] = value if value.before == 0 else stuck
    return tuple(first.values())


def _rank(change: Change) -> tuple[bool, bool, bool, bool, float]:
    """Return the sort key that puts the most informative change first."""
    kind = change.kind
    tells_more = kind in ("fit", "offset")
    return change.slip == 0, not tells_more, kind not in OF_ANSWERS, kind == "level", change.p


def _series(evidence: Evidence, order: Int[np.ndarray, "row"]) -> Iterator[_Series]:
    right, numbers, shared = right_rows(evidence), number_rows(evidence), shared_rows(evidence)
    examples = [] if shared.order is None else shared.order.numpy()[order].tolist()
    if file_names(evidence, examples):
        pass  # the order is that of the names: weak groups tell errors by how these begin
    elif right is not None:
        yield _Series("error", "the answers", 1 - right.double().numpy()[order])
    elif not isinstance(numbers, str):
        off = np.full(len(order), np.nan)
        rows, answers, truth = (x.double().numpy() for x in numbers)
        off[rows.astype(int)] = np.abs(answers - truth)
        limit = NEAR * truth.std()
        yield _Series("error", "the answers", np.where(np.isnan(off), off, off > limit)[order])
        pair = np.full((2, len(order)), np.nan)
        pair[:, rows.astype(int)] = _standard(answers), _standard(truth)
        pair = pair[:, order]
        places = shared.order.numpy()[rows.astype(int)] if shared.order is not None else rows
        ranked: Any = spearmanr(places, answers)
        if ranked.pvalue > 0.01:  # else errors may follow from the order of the targets
            signed = np.full(len(order), np.nan)
            signed[rows.astype(int)] = truth - answers
            yield _Series("offset", "the answers", signed[order])
        ranked = spearmanr(places, truth)
        if ranked.pvalue > 0.01:  # else rows may stand in the order of their targets
            yield _Series("fit", "the answers", np.abs(pair[0] - pair[1]), pair=pair)
    else:
        yield from _of_heads(evidence, examples)
    for name in PICTURE_COLUMNS:
        column = shared.column(name)
        if column is not None:
            x = column.double().reshape(len(order), -1)[:, 0].numpy()[order]
            yield _Series("level", f"the {name}", x)
    data = evidence.data
    if not data.inputs or data.key_columns is None or shared.order is None:
        return
    if not data.key_columns(examples[:1]):
        return
    given = data.key_columns(examples)
    for name in [n for n in data.inputs if n in given][:MOST_COLUMNS]:
        yield from _of_column(name, given[name])


def _of_heads(evidence: Evidence, examples: Sequence[int]) -> Iterator[_Series]:
    """Yield the errors of the first head: of several numbers, or of an entry of a map or a text."""
    heads = evidence.get(judge_heads)
    if not isinstance(heads, Heads) or not heads.found:
        return
    head, off = heads.found[0], np.full(len(examples), np.nan)
    place = {example: i for i, example in enumerate(head.examples)}
    answered = [i for i, example in enumerate(examples) if example in place]
    at = [place[examples[i]] for i in answered]
    if head.numbers is not None:
        answers, truth = head.numbers
        spread = truth.var(0, correction=0).clamp(min=1e-300)
        far = ((answers - truth).square() / spread).nanmean(1).sqrt().numpy()
        off[answered] = far[at] > NEAR
        yield _Series("error", "the answers", off)
        return
    off[answered] = 1 - head.right.numpy()[at]
    yield _Series("entries" if head.measure in MANY else "error", "the answers", off)


def _standard(x: Float[np.ndarray, "row"]) -> Float[np.ndarray, "row"]:
    """Return numbers with mean 0 and variance 1."""
    return (x - x.mean()) / max(float(x.std()), 1e-12)


def _of_column(name: str, cells: Sequence[Any]) -> Iterator[_Series]:
    x = np.array([_number(cell) for cell in cells])
    missing = np.isnan(x)
    if missing.all():
        return
    if missing.any():
        yield _Series("missing", name, missing.astype(float))
    is_known = ~missing
    if len(np.unique(x[is_known])) < 3:
        return
    same = np.zeros(len(x))
    same[1:] = x[1:] == x[:-1]
    yield _Series("stuck", name, np.where(is_known, same, np.nan))
    values, counts = np.unique(x[is_known], return_counts=True)
    often = values[counts >= max(8, 0.03 * len(x))]
    if len(often) and len(often) <= 20:
        scores = [_cusum((x == value).astype(float))[1] for value in often]
        value = float(often[int(np.argmax(scores))])
        yield _Series("value", name, np.where(is_known, x == value, np.nan), value)


def _number(cell: Any) -> float:
    number = None if cell is None or cell == "" else as_number(cell)
    return np.nan if number is None else float(number)


def _cusum(x: Float[np.ndarray, "row"]) -> tuple[int, float]:
    """Return the split where the two means differ most, and the difference in standard errors."""
    n = len(x)
    spread = float(x.std())
    first, last = max(2, round(MARGIN * n)), n - max(2, round(MARGIN * n))
    if spread == 0 or last <= first:
        return n // 2, 0.0
    k = np.arange(first, last + 1)
    total = np.cumsum(x - x.mean())[k - 1]
    score = np.abs(total) * np.sqrt(n / (k * (n - k))) / spread
    best = int(np.argmax(score))
    return int(k[best]), float(score[best])


def _variance_step(x: Float[np.ndarray, "row"]) -> int:
    """Return the likeliest position of a change in variance, for Gaussian numbers."""
    n, total = len(x), np.cumsum(np.square(x))
    k = np.arange(max(2, round(MARGIN * n)), n - max(2, round(MARGIN * n)) + 1)
    early, late = total[k - 1] / k, (total[-1] - total[k - 1]) / (n - k)
    return int(k[np.argmin(k * np.log(early) + (n - k) * np.log(late))])


def _change(
    series: _Series,
    examples: Int[np.ndarray, "row"],
    classes: Int[np.ndarray, "row"] | None,
    n_series: int,
    states: Float[np.ndarray, "row series"] | None,
    cuts: Sequence[int],
) -> Change | None:
    """Choose a position on every second block, test it on the others, then refine it on all.

    A block is one row, or as many rows as go together (``rows_per_block``) after the changes that
    were found before. Either side needs rows of several stretches of alike states: what differs
    between two recordings is no change.
    """
    is_known = ~np.isnan(series.x)
    x, at = series.x[is_known], examples[is_known]
    flat = x if series.kind not in RANKED else rankdata(x) / len(x)
    classes = None if classes is None or not _sorted(classes[is_known]) else classes[is_known]
    flat = flat if classes is None else _within(flat, classes)
    if len(x) < LEAST_ROWS:
        return None
    starts = [_cusum(flat)[0], *(int(is_known[:cut].sum()) for cut in cuts)]
    block = rows_per_block(flat[:, None], starts, classes)
    stretch = 1 if states is None else rows_per_block(states[is_known], starts, classes)
    means = _block_means(flat, block)
    k, _ = _cusum(means[::2])
    rest = np.arange(len(means) * block).reshape(-1, block)[1::2]
    early, late = rest[:k], rest[k:]
    if min(len(early), len(late)) < 5 or 2 * min(early.size, late.size) < STRETCHES * stretch:
        return None
    gap = None
    if classes is not None:
        if series.pair is not None:
            return None
        chance, gap = _chance_within(flat, classes, early.ravel(), late.ravel(), block)
    elif series.pair is not None:
        chance = _less_related(series.pair[:, is_known], early.ravel(), late.ravel(), block)
    else:
        chance = _chance(series.kind, x, flat, early, late)
    early, late = early.ravel(), late.ravel()
    p = n_series * chance
    before, after = (_middle(series.kind, x[i]) for i in (early, late))
    if p >= 0.001 or not _large(series.kind, before, after, flat[early], flat[late]):
        return None
    if gap is not None and abs(gap) < 0.1:
        return None
    place = _variance_step(x) if series.kind == "fit" else _cusum(flat)[0]
    return Change(
        series.kind, series.name, int(at[place]), before, after, min(1.0, p), series.value
    )


def _block_means(x: Float[np.ndarray, "row"], size: int) -> Float[np.ndarray, "block"]:
    """Return the means of consecutive blocks; rows of an incomplete last block are left out."""
    return x[: len(x) // size * size].reshape(-1, size).mean(1)


def _middle(kind: Kind, x: Float[np.ndarray, "row"]) -> float:
    """Return the statistic of some rows: a median, a correlation, or a fraction."""
    if kind == "fit":
        return 1 - float(np.square(x).mean()) / 2
    return float(np.median(x) if kind in APART else x.mean())


def _less_related(
    pair: Float[np.ndarray, "2 row"],
    early: Int[np.ndarray, "row2"],
    late: Int[np.ndarray, "row3"],
    block: int,
) -> float:
    """Return the p-value that two rank correlations are equal, by Fisher's transform.

    A block of rows counts as one row.

    The variance of the transform is that of Bonett and Wright, which holds for heavy tails.
    """
    total = variance = 0.0
    for sign, part in ((1, early), (-1, late)):
        ranked: Any = spearmanr(*pair[:, part])
        r = float(np.clip(np.nan_to_num(ranked.statistic), -0.999, 0.999))
        total += sign * np.arctanh(r)
        variance += (1 + r**2 / 2) / max(len(part) / block - 3, 1)
    return float(2 * norm.sf(abs(total) / np.sqrt(variance)))


def _sorted(classes: Int[np.ndarray, "row"]) -> bool:
    """Return whether the rows are sorted by class rather than in random order."""
    n = len(classes)
    sizes = np.unique(classes, return_counts=True)[1]
    steps = int((classes[1:] != classes[:-1]).sum())
    return steps < 0.8 * (n - 1) * (1 - float(((sizes / n) ** 2).sum()))


def _within(
    x: Float[np.ndarray, "row"], classes: Int[np.ndarray, "row"]
) -> Float[np.ndarray, "row"]:
    """Return numbers minus the mean of their class."""
    out = x.astype(float).copy()
    for k in np.unique(classes):
        out[classes == k] -= x[classes == k].mean()
    return out


def _chance(kind: Kind, x: Any, flat: Any, early: Any, late: Any) -> float:
    """Return the p-value of the difference under random order of the blocks."""
    if kind in RANKED or early.shape[1] > 1:
        result: Any = mannwhitneyu(flat[early].mean(1), flat[late].mean(1))
        return float(result.pvalue)
    table = [[int(x[i].sum()), int(i.size - x[i].sum())] for i in (early, late)]
    result = fisher_exact(table)
    return float(result.pvalue)


def _chance_within(x: Any, classes: Any, early: Any, late: Any, block: int) -> tuple[float, float]:
    """Return the p-value under random order within classes, and the mean difference.

    The chance is a normal approximation. A class with rows on one side only is left out.
    """
    total = variance = gap = weight = 0.0
    for k in np.unique(classes):
        a, b = (x[i[classes[i] == k]] for i in (early, late))
        if not len(a) or not len(b):
            continue
        both, share = np.concatenate([a, b]), len(a) * len(b) / (len(a) + len(b))
        total += float(b.sum() - len(b) * both.mean())
        variance += share * float(both.var(ddof=1)) * block
        gap, weight = gap + share * float(b.mean() - a.mean()), weight + share
    if variance == 0 or weight == 0:
        return 1.0, 0.0
    return float(2 * norm.sf(abs(total) / np.sqrt(variance))), gap / weight


def _large(kind: Kind, before: float, after: float, early: Any, late: Any) -> bool:
    if kind == "stuck":
        return max(before, after) >= 0.9 and min(before, after) <= 0.3
    if kind in APART:
        above = float((early[:, None] < late[None, :]).mean())
        return abs(above - 0.5) >= APART[kind]
    return abs(after - before) >= (LESS if kind == "fit" else 0.1)


def _with_slip(change: Change, evidence: Evidence, order: Int[np.ndarray, "row"]) -> Change:
    """Add the number of rows by which labels are shifted, if shifted labels fit the answers."""
    shared = shared_rows(evidence)
    answers = _answers(evidence, order)
    if change.kind != "error" or answers is None or shared.order is None:
        return change
    examples = shared.order.numpy()[order]
    first = chooses(shared.group).numpy()[order]
    best = (0, 1 - change.after)
    for slip in SLIPS:
        _, right = _slipped(answers, examples, first & (examples >= change.row), slip)
        if len(right) >= 10 and right.mean() > best[1]:
            best = slip, float(right.mean())
    gained = best[1] - (1 - change.after)
    if best[0] == 0 or gained < 0.7 * (change.after - change.before):
        return change
    row, own = _slips_from(answers, examples, best[0]), answers.fit(np.arange(len(examples)))
    kept, mended = _slipped(answers, examples, ~first & (examples >= row), best[0])
    if len(mended) < 10 or mended.mean() <= own[kept].mean():
        return change
    measure: Measure = "accuracy" if evidence.data.target is None else "error"
    given, moved = (torch.from_numpy(x.astype(float)) for x in (own[kept], mended))
    trial = Trial(f"labels {best[0]:+d} rows on", "labels", measure,
                  torch.from_numpy(examples[kept]), given, moved)  # fmt: skip
    after, before = (1 - float(own[late].mean()) for late in (examples >= row, examples < row))
    return replace(change, row=row, before=before, after=after, slip=best[0],
                   mended=float(mended.mean()), trial=trial)  # fmt: skip


def _with_offset(change: Change, evidence: Evidence, order: Int[np.ndarray, "row"]) -> Change:
    """Add what is to be subtracted from the later targets, and its trial on rows held out."""
    shared, answers = shared_rows(evidence), _answers(evidence, order)
    if answers is None or shared.order is None:
        return change
    examples, first = shared.order.numpy()[order], chooses(shared.group).numpy()[order]
    off, is_late = answers.label - answers.said, examples >= change.row
    parts = (is_late & first, ~is_late & first, is_late & ~first)
    if min(int(np.isfinite(off[part]).sum()) for part in parts) < FEWEST:
        return replace(change, value=change.after - change.before)
    value = float(np.nanmedian(off[is_late & first]) - np.nanmedian(off[~is_late & first]))
    value = float(f"{value:.3g}")  # as the line says it
    judges = is_late & ~first & np.isfinite(off)
    spread = max(float(np.nanvar(answers.label)), 1e-300)
    given, moved = (torch.from_numpy(1 - np.square(x[judges]) / spread) for x in (off, off - value))
    words = f"{number(value)} subtracted from the targets from row {change.row + 1:,} on"
    trial = Trial(words, "labels", "error", torch.from_numpy(examples[judges]), given, moved)
    return replace(change, value=value, trial=trial)


@dataclass(frozen=True, eq=False)
class _Answers:
    """Answers and labels in file order, and the largest difference that counts as a match."""

    said: Float[np.ndarray, "row"]
    label: Float[np.ndarray, "row"]
    near: float

    def fit(self, other: Int[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
        """Return whether each answer matches the label of another row."""
        return np.abs(self.said - self.label[other]) <= self.near


def _answers(evidence: Evidence, order: Int[np.ndarray, "row"]) -> _Answers | None:
    """Return the answers: classes, or numbers with a tolerance of a third of the targets' sd."""
    columns, numbers = answer_columns(evidence), number_rows(evidence)
    if not isinstance(columns, str):
        answers, label = columns[0].argmax(1).double().numpy(), columns[1].double().numpy()
        return _Answers(answers[order], np.where(label < 0, np.nan, label)[order], 0.0)
    if isinstance(numbers, str):
        return None
    at, answers, truth = (x.double().numpy() for x in numbers)
    both = np.full((2, len(order)), np.nan)
    both[:, at.astype(int)] = answers, truth
    return _Answers(both[0][order], both[1][order], NEAR * float(truth.std()))


def _slips_from(answers: _Answers, examples: Int[np.ndarray, "row"], slip: int) -> int:
    """Return the row from which shifted labels fit the answers better than given labels."""
    own = answers.fit(np.arange(len(examples))).astype(float)
    moved = own.copy()
    for i, example in enumerate(examples):
        _, one = _slipped(answers, examples, examples == example, slip)
        moved[i] = float(one[0]) if len(one) else own[i]
    total = np.concatenate([[0.0], np.cumsum(own - moved)])
    return int(examples[min(int(np.argmax(total[:-1])), len(examples) - 1)])


def _slipped(
    answers: _Answers,
    examples: Int[np.ndarray, "row"],
    chosen: Bool[np.ndarray, "row"],
    slip: int,
) -> tuple[list[int], Bool[np.ndarray, "kept"]]:
    """Return the rows that have a label ``slip`` rows later, and whether it matches the answer."""
    where = {int(example): i for i, example in enumerate(examples)}
    pairs = [(i, where.get(int(examples[i]) + slip, -1)) for i in np.flatnonzero(chosen)]
    other = np.arange(len(examples))
    kept = [int(i) for i, j in pairs if j >= 0 and np.isfinite(answers.label[j])]
    for i, j in pairs:
        other[i] = max(j, 0)
    return kept, answers.fit(other)[kept]


@final
@dataclass(frozen=True)
class SND049(Rule):
    """Difference of errors, offsets, stuck or missing values before and after one row of a file."""

    difference: float = 0.1
    level: float = 0.001

    title: ClassVar[str] = "The data change at one row of the file"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("change in file",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(
            (
                "SND015",
                "SND034",
                "SND037",
                "SND044",
                "SND046",
                "SND047",
                "SND061",
                "SND063",
                "SND069",
            ),
            levels=SERIOUS,
        ),
    )
    why: ClassVar[str] = (
        "Labels misaligned by a row, a sensor that stops or a camera that gets darker spoil "
        "the rest of a file, while its beginning stays correct."
    )
    fix: ClassVar[str] = "Compare the rows before and after the row named, and repair the rest."
    how: ClassVar[str] = (
        "Series in the order of the file are tested: the model's errors (regressions: off by a "
        "third of the targets' standard deviation; several labels a row or a map: the fraction of "
        "wrong ones, by the Mann-Whitney test); target minus answer of a regression (raised if a "
        "later one is larger with a chance of 0.8 or more, or of 0.2 or less); the gap between "
        "standardised numbers and targets, whose mean square is 2 minus twice their correlation "
        "(raised if it changes by 0.3); for each numeric input column, whether a value repeats "
        "the value before it, equals a frequent value, or is missing; and brightness, contrast "
        "and sharpness of images. Half of the rows (every second one) choose the position where "
        "the means before and after differ most; the other half tests it: Fisher's exact test "
        "(null: any order), for images the Mann-Whitney test, for gaps Fisher's transform of rank "
        "correlations. If neighbouring rows depend on each other, as in a recording, blocks of "
        "twice the autocorrelation time of the series take the place of rows (Mann-Whitney test "
        "of their means), and either side of a change of answers or images must be five times as "
        "long as the autocorrelation time of the states. The p times the number of series (those "
        "of answers, or the others) must be below 0.001. Raised if the fractions differ by 0.1; a "
        "column is stuck if values repeat on 90 % of one part and on at most 30 % of the other. "
        "Labels are misaligned if the answers fit labels up to three rows away. Files sorted by "
        "class are compared within classes."
    )
    false_positives: ClassVar[str] = "Files that were joined from different parts on purpose."
    plant: ClassVar[str] = "Labels of the second half are moved by one row; a column sticks."
    twin: ClassVar[str] = "The same rows before the change."

    def check(self, evidence: Evidence) -> Check:
        """Search for a change in every series."""
        changes = changes_in_file(evidence)
        if isinstance(changes, str):
            return self.not_applicable(changes)
        if not changes:
            return self.clear(Figure("difference", 0.0, unit="share", threshold=self.difference))
        first, n = changes[0], evidence.data.n
        figure = Figure(
            "difference", abs(first.after - first.before), unit="share", null=0.0,
            threshold=self.difference if first.kind not in APART else None, p=first.p,
            n_rows=n,
        )  # fmt: skip
        texts = [_said(change, n) for change in changes[:4]]
        text = f"{'; '.join(texts)}."
        return self.raised_with(
            "note" if first.kind == "level" else "warning",
            sentence(text[:1].upper() + text[1:]),
            figure,
            examples=tuple(dict.fromkeys(change.row for change in changes)),
            effect=min(1.0, abs(first.after - first.before)) if first.kind not in APART else 0.3,
            trial=next((c.trial for c in changes if c.trial is not None), None),
            fix=_fix(first) or next(filter(None, map(_fix, changes)), ""),
            location=Location(
                columns=tuple({c.name for c in changes} & set(evidence.data.inputs)),
                rows=(min(c.row for c in changes), n),
                answers=first.kind == "offset" or first.slip != 0,
            ),
        )


def _said(change: Change, n: int) -> str:
    at, name = f"from row {change.row + 1:,} of {n:,} on", shortened(change.name, 30)
    if change.kind == "level":
        side = "falls" if change.after < change.before else "rises"
        return f"{at} {name} {side}: median {number(change.after)}, before {number(change.before)}"
    if change.kind == "offset":
        side = "below" if change.after < change.before else "above"
        return (
            f"{at} the targets lie {number(abs(change.value))} further {side} the model's answers "
            f"(median of their difference {number(change.after)}, before {number(change.before)})"
        )
    before, after = percent(change.before), percent(change.after)
    if change.slip:
        way = "earlier" if change.slip < 0 else "later"
        return (
            f"{at} the labels are misaligned: answers fit the label "
            f"{plural(abs(change.slip), 'row')} {way} (accuracy {percent(change.mended)}, with "
            f"their own label {percent(1 - change.after)}; accuracy in the rows before the "
            f"misalignment {percent(1 - change.before)})"
        )
    if change.kind == "error":
        return f"{at} the model is wrong on {after} of rows ({before} before)"
    if change.kind == "entries":
        return f"{at} the model is wrong on {after} of the labels of a row ({before} before)"
    if change.kind == "fit" and change.after > change.before:
        return (
            f"up to row {change.row:,} of {n:,} the model's outputs follow the targets less: "
            f"correlation {number(change.before, 2)}, after it {number(change.after, 2)}; the "
            "targets up to there seem to belong to other rows"
        )
    if change.kind == "fit":
        return (
            f"{at} the model's outputs follow the targets less: correlation "
            f"{number(change.after, 2)}, before {number(change.before, 2)}; the targets from "
            "there on seem to belong to other rows"
        )
    if change.kind == "stuck":
        return f"{at} {name} repeats its last value on {after} of rows ({before} before)"
    if change.kind == "missing":
        return f"{at} {name} is missing in {after} of rows ({before} before)"
    return f"{at} {name} is {number(change.value, 6)} in {after} of rows ({before} before)"


def _fix(change: Change) -> str:
    """Return the line of code that undoes the change; empty if there is none."""
    row, name = change.row, repr(change.name)
    if change.slip:
        return (
            f"rest = frame.index[{row}:]; frame.loc[rest, 'label'] = frame['label'].shift("
            f"{-change.slip})[rest] (the column of labels): correct on "
            f"{percent(change.mended)} from there on instead of {percent(1 - change.after)}."
        )
    if change.kind == "offset" and change.trial is not None:
        now, then = (float(x.mean()) for x in (change.trial.after, change.trial.before))
        sign, size = ("-", change.value) if change.value > 0 else ("+", -change.value)
        return (
            f"target[{row}:] {sign}= {size:.3g}: R^2 of {number(now, 2)} from there on instead of "
            f"{number(then, 2)}."
        )
    if change.kind in ("stuck", "value"):
        which = f" where it is {number(change.value, 6)}" if change.kind == "value" else ""
        return f"Treat {name} as missing from row {row + 1:,} on{which}, or drop these rows."
    return ""
