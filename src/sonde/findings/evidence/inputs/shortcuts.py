"""Small parts of the inputs that predict the label, and the accuracy without them.

Run after the pass on few rows: parts are sought on one half of them, and exchanged on the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.core.repacking import count_weights
from sonde.findings.evidence.answers.answers import right_rows
from sonde.findings.evidence.answers.labels import LEAST_ROWS, class_name, usable
from sonde.findings.evidence.inputs.input_parts import Blocks, Kind, Parts, Rows, parts_of
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import one_per_group, shared_rows, two_logits
from sonde.findings.evidence.texts.text_losses import in_lists
from sonde.findings.trial_budget import counted
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import single, stacked

USUAL_WEIGHTS: Final = 2_000_000
ROWS, TOGETHER, DRAWS, TRIED = 800, 128, 2, 3
FIT, CHOOSE, CONFIRM = range(3)
USUAL_NUMBERS = 12_288
RIDGE, LEVEL = 1e-2, 0.001
ELSEWHERE: Final = 0.01
"""Largest fraction of the rows of other classes that contain a mark."""
MARKED: Final = 0.3
"""Smallest fraction of a class that contains a mark."""
LEAST_MARKED = 5
SAME = 0.8


@dataclass(frozen=True)
class Shortcut:
    """A small part of the inputs that predicts a class, and the accuracy that depends on it.

    Parameters
    ----------
    label : int
        Class number.
    name : str
        Of the class.
    where : str
        The part, in words.
    marked, elsewhere : float
        Share of the rows of the class, and of the other rows, that are marked: their part scores
        above the bound of ``_bounds``, which at most 1 % of the other classes exceed. Counted on
        rows that did not choose the part.
    spread : float
        Standard deviation of the part's score in the marked rows of the class, over the distance
        of their mean score from that of the other classes: 0 = equal in every marked row.
    kept, right : float
        Share of the marked rows that the model gets right with the part of another marked row (of
        a text: with as many other tokens exchanged), and with the part of a row of another class.
    low, high : float
        Interval of the drop from ``kept`` to ``right``, at 99.9 % over all classes.
    n : int
        Marked rows of the class, in which the part was exchanged.
    examples : tuple of int
        Some of the marked rows, by planned order.
    carried : float, default=0.0
        Share of the rows of other classes that are called this class with the part of a marked row
        pasted in; 0 for tokens, which are not pasted.
    """

    label: int
    name: str
    where: str
    marked: float
    elsewhere: float
    spread: float
    kept: float
    right: float
    low: float
    high: float
    n: int
    examples: tuple[int, ...]
    carried: float = 0.0

    @property
    def drop(self) -> float:
        """Accuracy that the model loses on the marked rows."""
        return self.kept - self.right


@dataclass(frozen=True, eq=False)
class ShortcutEvidence:
    """Parts of the inputs that were tested as shortcuts.

    Parameters
    ----------
    tried : tuple of Shortcut
        At most one shortcut for each class: the part whose exchange cost most on the rows that
        chose it.
    n_parts, n_rows : int
        Parts, and rows held out from the choice.
    kind : {"place", "column", "token"}
    """

    tried: tuple[Shortcut, ...]
    n_parts: int
    n_rows: int
    kind: Kind


@counted
def shortcut_evidence(stream: LiveStream, evidence: Evidence) -> ShortcutEvidence | str:
    """Test whether small parts predict the label, or return the reason why they cannot be tested.

    At most 800 rows of different groups. A large model or large inputs need a deep scan.
    """
    if not usable(evidence) or right_rows(evidence) is None or stream.logits_key is None:
        return "needs labels that are the model's own classes, and its logits"
    weights = count_weights(stream.model.module)
    if weights > USUAL_WEIGHTS and not evidence.deep:
        return "the model is too large for this check; --deep runs it"
    examples = _examples(stream, evidence)
    if isinstance(examples, str):
        return examples
    parts = parts_of(examples.singles, stream.model.processor, evidence.data.inputs)
    if isinstance(parts, str):
        return parts
    if parts.n_numbers > USUAL_NUMBERS and not evidence.deep:
        return "the inputs are too large for this check; --deep runs it"
    with untouched(stream.model.module), torch.no_grad():
        return _searched(stream, evidence, examples, parts)


@dataclass(frozen=True, eq=False)
class _Examples:
    """Single examples; of each class a quarter fits, a quarter selects, and half is held out."""

    singles: list[InputBatch]
    order: list[int]
    label: Int[np.ndarray, "row"]
    use: Int[np.ndarray, "row"]

    def rows(self, use: int, label: int | None = None) -> Rows:
        """Return the rows for a use, all of them or those of class ``label``."""
        used = self.use == use
        return np.flatnonzero(used if label is None else used & (self.label == label))


def _examples(stream: LiveStream, evidence: Evidence) -> _Examples | str:
    shared = shared_rows(evidence)
    label, order = shared.column("label"), shared.order
    if label is None or order is None:
        return "the order of the sampled rows is not known"
    one = one_per_group(shared.group)
    one = one[label[one] >= 0][:ROWS]
    singles, kept = [], []
    for row in one.tolist():
        batch = single(stream.inputs, int(order[row]))
        if batch is not None:
            singles.append(batch)
            kept.append(row)
    number = label[torch.tensor(kept, dtype=torch.int64)].numpy()
    use = np.zeros(len(kept), dtype=int)
    for k in np.unique(number):
        of_class = number == k
        use[of_class] = np.array([FIT, CONFIRM, CHOOSE, CONFIRM])[np.arange(of_class.sum()) % 4]
    return _Examples(singles, [int(order[r]) for r in kept], number, use)


def _searched(
    stream: LiveStream, evidence: Evidence, found: _Examples, parts: Parts
) -> ShortcutEvidence | str:
    classes = [int(k) for k in np.unique(found.label) if (found.label == k).sum() >= LEAST_ROWS]
    if len(classes) < 2:
        return f"needs {LEAST_ROWS} rows in each of two classes"
    fit, choose, rest = (found.rows(use) for use in (FIT, CHOOSE, CONFIRM))
    target = np.stack([found.label == k for k in classes]).astype(float)
    score = _scores(parts.blocks, target[None], fit)
    bound = _bounds(score[:, :, choose], target[:, choose])
    # Rows of a class without its mark would turn the direction away from the mark.
    marked = (score > bound[..., None]) * target
    score = _scores(parts.blocks, marked, fit)
    bound = _bounds(score[:, :, choose], target[:, choose])
    exchange = _Exchange(stream, found, parts, np.random.default_rng(evidence.data.seed))
    reach = float(ndtri(1 - LEVEL / (2 * len(classes))))
    tried = []
    for i, k in enumerate(classes):
        of_class, others = choose[found.label[choose] == k], choose[found.label[choose] != k]
        held = score[:, i] > bound[:, i, None]
        marked, spread = held[:, of_class].mean(1), _spreads(score[:, i], held, of_class, others)
        order = np.lexsort((-marked, np.where(marked >= MARKED, spread, np.inf)))
        likely = _unlike(held[:, of_class], order[: np.count_nonzero(marked >= MARKED)])
        costs = {p: exchange.cost(p, of_class[held[p, of_class]], others)[0].mean() for p in likely}
        if not costs or max(costs.values()) <= 0:
            continue
        part = max(costs, key=lambda p: costs[p])
        of_class, others = rest[found.label[rest] == k], rest[found.label[rest] != k]
        own = of_class[held[part, of_class]]
        if len(own) < LEAST_MARKED:
            continue
        lost, kept, right = exchange.cost(part, own, others)
        error = reach * max(float(lost.std(ddof=1)), 1 / len(own)) / len(own) ** 0.5
        tried.append(
            Shortcut(
                label=k,
                name=class_name(evidence.data, k),
                where=parts.words(part),
                marked=len(own) / len(of_class),
                elsewhere=float(held[part, others].mean()),
                spread=float(_spreads(score[:, i], held, of_class, others)[part]),
                kept=kept,
                right=right,
                low=max(-1.0, float(lost.mean()) - error),
                high=min(1.0, float(lost.mean()) + error),
                n=len(own),
                examples=tuple(found.order[r] for r in own[:5]),
                carried=exchange.carried(part, own, others),
            )
        )
    return ShortcutEvidence(tuple(tried), len(parts.blocks), len(rest), parts.kind)


def _unlike(held: Bool[np.ndarray, "part row"], order: Rows) -> list[int]:
    """Return up to six parts in order; at most three of them mark about the same rows."""
    chosen: list[int] = []
    for part in order.tolist():
        both = (held[chosen] & held[part]).sum(1)
        either = (held[chosen] | held[part]).sum(1)
        if np.count_nonzero(both > SAME * either) < TRIED:
            chosen.append(part)
        if len(chosen) == 2 * TRIED:
            break
    return chosen


def _bounds(
    score: Float[np.ndarray, "part class row"], target: Float[np.ndarray, "class row"]
) -> Float[np.ndarray, "part class"]:
    """Return the scores above which a row counts as marked.

    The bound lies halfway between the score that at most 1 % of other classes exceed and the mean
    of the class's own rows above that score. Scores between both groups belong to neither.
    """
    elsewhere = np.where(target > 0, np.nan, score)
    bound = np.nanquantile(elsewhere, 1 - ELSEWHERE, axis=-1, method="higher")
    # a score that rounding alone sets apart is no other score
    bound += 1e-9 * np.abs(score).max(-1)
    above = (score > bound[..., None]) * target
    return bound + (np.maximum(score - bound[..., None], 0) * above).sum(-1) / 2 / np.maximum(
        above.sum(-1), 1
    )


def _spreads(
    score: Float[np.ndarray, "part row"],
    held: Bool[np.ndarray, "part row"],
    own: Rows,
    others: Rows,
) -> Float[np.ndarray, "part"]:
    """Return each part's score deviation in marked rows, over the distance to other rows."""
    mean = _mean(score[:, own], held[:, own])
    inner = _mean((score[:, own] - mean[:, None]) ** 2, held[:, own])
    gap = mean - score[:, others].mean(1)
    return np.where(gap > 0, np.sqrt(inner) / np.where(gap > 0, gap, 1), np.inf)


def _mean(
    x: Float[np.ndarray, "part row"], held: Bool[np.ndarray, "part row"]
) -> Float[np.ndarray, "part"]:
    return (x * held).sum(1) / np.maximum(held.sum(1), 1)


def _scores(
    blocks: Blocks, target: Float[np.ndarray, "#part class row"], fit: Rows
) -> Float[np.ndarray, "part class row"]:
    """Return each row's score for each class, by ridge regression on each part."""
    x = blocks - blocks[:, fit].mean(1, keepdims=True)
    fitted = x[:, fit]
    gram = fitted.transpose(0, 2, 1) @ fitted
    size = np.trace(gram, axis1=1, axis2=2) / gram.shape[1]
    gram += (RIDGE * size + 1e-12)[:, None, None] * np.eye(gram.shape[1])
    y = (target[..., fit] - target[..., fit].mean(-1, keepdims=True)).swapaxes(1, 2)
    weight = np.linalg.solve(gram, fitted.transpose(0, 2, 1) @ y)
    return (x @ weight).transpose(0, 2, 1)


@dataclass(frozen=True, eq=False)
class _Exchange:
    """Exchanges of parts between rows, and the model's answers to the result."""

    stream: LiveStream
    found: _Examples
    parts: Parts
    draw: np.random.Generator

    def cost(
        self, part: int, own: Rows, others: Rows
    ) -> tuple[Float[np.ndarray, "row"], float, float]:
        """Return each row's lost accuracy, and the accuracies after control and exchange."""
        rows, parts = np.tile(own, DRAWS), self.parts
        unlike = self.draw.choice(others, len(rows))
        like = unlike
        if parts.kind != "token":
            like = np.concatenate([self.draw.permutation(own) for _ in range(DRAWS)])
        kept, right = (
            class_answers_of(self.stream, change) == self.found.label[rows]
            for change in (
                parts.control(part, rows, like, self.draw),
                parts.swap(part, rows, unlike, self.draw),
            )
        )
        lost = (kept.astype(float) - right.astype(float)).reshape(DRAWS, -1).mean(0)
        return lost, float(kept.mean()), float(right.mean())

    def carried(self, part: int, own: Rows, others: Rows) -> float:
        """Return the fraction of other rows classified as this class with its part pasted in."""
        if self.parts.kind == "token":
            return 0.0
        exchanged = self.parts.swap(part, others, self.draw.choice(own, len(others)), self.draw)
        return float((class_answers_of(self.stream, exchanged) == self.found.label[own[0]]).mean())


def class_answers_of(stream: LiveStream, singles: Sequence[InputBatch]) -> Int[np.ndarray, "row"]:
    """Return the model's classes, -1 for rows without an answer."""
    logits = answers_of(stream, singles)
    if logits is None:
        return np.full(len(singles), -1)
    return two_logits(logits).argmax(1).numpy()


def answers_of(
    stream: LiveStream, singles: Sequence[InputBatch]
) -> Float[Tensor, "row class"] | None:
    """Return the logits of single examples; equal shapes run as a batch.

    None if the model gives no row of logits for each example.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, one in enumerate(singles):
        shapes = tuple(
            tuple(v.shape) if isinstance(v, Tensor) else None
            for v in (*one.args, *one.kwargs.values(), one.mask)
        )
        alike.setdefault(shapes, []).append(i)
    answers: dict[int, Tensor] = {}
    assert stream.logits_key is not None
    for rows in alike.values():
        for some in in_lists(rows, TOGETHER):
            batch = stacked([singles[i] for i in some])
            output = watch(stream.model.module, batch, (), place=stream.probe.place).output
            logits = find_logits(output, stream.logits_key)
            if logits is None or logits.ndim != 2:
                return None
            answers |= dict(zip(some, logits.detach().cpu(), strict=True))
    return torch.stack([answers[i] for i in range(len(singles))])
