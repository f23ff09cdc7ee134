"""Accuracy of each head of a model: for several heads, several labels, ranks and maps.

Run after the pass on at most 2,048 rows, if one column of single classes or numbers does not
suffice. Boxes are judged as numbers, and only beside boxes of the same shape.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.data import ItemInputs
from sonde.engine.errorbars import group_error
from sonde.findings.evidence.answers.head_accuracy import Kind, Part, judged, n_classes
from sonde.findings.evidence.answers.number_answers import root_mean
from sonde.findings.evidence.half_intervals import Z
from sonde.findings.evidence.record import DataEvidence
from sonde.findings.self_check import chosen_examples
from sonde.stats.intervals import grouped_share
from sonde.tap import LiveStream
from sonde.tap.hooks.outputs import leaves
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch

ROWS: Final = 2048
MOST_NUMBERS: Final = 2**24


@dataclass(frozen=True, eq=False)
class HeadAnswers:
    """The answers of a head, compared with a column of labels.

    Parameters
    ----------
    name, column : str
        The output of the model (empty if it is the only one), and the column of its labels.
    measure : str
    right : Float[Tensor, "row"]
        Share of each row's answers that are right; for numbers, the mean squared error.
    usual : Float[Tensor, "row"]
        The same if every row is answered by the commonest answer, or the mean.
    examples : tuple of int
        Of each row, by planned order.
    whole : float
        Share of rows where all labels are right; NaN for a single answer.
    overlap : float
        Mean intersection over union of the classes of a map; NaN for others.
    off : float
        Mean distance in ranks; NaN where classes have no order.
    parts : tuple of Part
    group : Int[Tensor, "row"]
        Numbers of the rows' groups; at least two groups.
    words : (tuple of str, tuple of str)
        Truth and answer of each row, in words; empty where they are too long. Of several numbers,
        those of the number that is furthest off.
    other : (str, float) or None
        A change after which answers fit the labels far better, in words, and the share right then;
        for numbers the mean R^2.
    mended : Float[Tensor, "row"] or None
        Fraction of each row's answers that are right after this change; NaN for the rows that chose
        it. None if it is not known.
    line : str
        This change of numbers as code on ``y``, the model's output.
    own : float
        R^2 of the unchanged numbers on the same rows.
    numbers : (Float[Tensor, "row number"], Float[Tensor, "row number"]) or None
        Answers and targets of a head of numbers.
    """

    name: str
    column: str
    measure: Kind
    right: Float[Tensor, "row"]
    usual: Float[Tensor, "row"]
    examples: tuple[int, ...]
    group: Int[Tensor, "row"]
    whole: float = math.nan
    overlap: float = math.nan
    off: float = math.nan
    parts: tuple[Part, ...] = ()
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    other: tuple[str, float] | None = None
    mended: Float[Tensor, "row"] | None = None
    of_classes: bool = False
    line: str = ""
    own: float = math.nan
    numbers: tuple[Float[Tensor, "row number"], Float[Tensor, "row number"]] | None = None

    @property
    def value(self) -> float:
        """Fraction of correct answers, or the root of the mean squared error."""
        mean = float(self.right.mean())
        return mean**0.5 if self.measure == "rms_error" else mean

    @property
    def commonest(self) -> float:
        """The value of a constant answer: the commonest answer, or the mean."""
        mean = float(self.usual.mean())
        return mean**0.5 if self.measure == "rms_error" else mean

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the value over groups."""
        if self.measure in ("accuracy", "rank_accuracy"):
            member = torch.unique(self.group, return_inverse=True)[1]
            return grouped_share((self.right == 1).numpy(), member.numpy())
        if self.measure == "rms_error":
            value, se = root_mean(self.right, self.group)
            return max(0.0, value - Z * se), value + Z * se
        se = self._error(self.right)
        return max(0.0, self.value - Z * se), min(1.0, self.value + Z * se)

    @property
    def n_groups(self) -> int:
        """Number of groups of the rows."""
        return len(torch.unique(self.group))

    @property
    def lead(self) -> tuple[float, float]:
        """Difference to a constant answer (positive = better), and its standard error."""
        more = self.right - self.usual
        if self.measure == "rms_error":
            more = -more / self.usual.mean().clamp(min=1e-300)
        return float(more.mean()), self._error(more)

    def _error(self, values: Float[Tensor, "row"]) -> float:
        """Return the standard error of a mean over groups."""
        return group_error(values / len(values), self.group, self.n_groups)


@dataclass(frozen=True, eq=False)
class Heads:
    """Heads that could be evaluated, and the reasons why others could not, by column."""

    found: tuple[HeadAnswers, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])


def of_head(head: HeadAnswers) -> dict[str, Any]:
    """Return the statistics of a head for the report."""
    low, high = head.interval
    return {
        "name": head.name,
        "column": head.column,
        "measure": head.measure,
        "value": head.value,
        "low": low,
        "high": high,
        "commonest": head.commonest,
        "all_right": head.whole,
        "mean_overlap": head.overlap,
        "ranks_off": head.off,
        "n_rows": len(head.right),
        "parts": [{"name": p.name, "value": p.value, "commonest": p.usual} for p in head.parts],
    }


def head_rows(head: HeadAnswers) -> dict[int, dict[str, Any]]:
    """Return label, answer, loss and correctness of each example of a head.

    The loss is the share of wrong answers, the distance in ranks, or the mean squared error.
    """
    is_number = head.measure == "rms_error"
    of_map = head.measure == "pixel_accuracy"
    rows: dict[int, dict[str, Any]] = {}
    for i, (example, right) in enumerate(zip(head.examples, head.right.tolist(), strict=True)):
        row: dict[str, Any] = {"loss": right if is_number else 1 - right}
        row["right"] = None if is_number or of_map else right == 1
        if head.words[0]:
            answer = head.words[1][i]
            row |= {"truth": head.words[0][i], "answer": float(answer) if is_number else answer}
        if head.measure == "rank_accuracy":
            row["loss"] = float(abs(int(row["truth"]) - int(row["answer"])))
        rows[example] = row
    return rows


def head_answers(stream: LiveStream, data: DataEvidence, is_judged: bool) -> Heads:
    """Judge each head by its label column; empty if one column is judged elsewhere.

    ``is_judged`` says that the answers to the first column are known already.
    """
    inputs = stream.inputs
    if not isinstance(inputs, ItemInputs) or stream.model.task == "causal":
        return Heads()
    columns = inputs.label_columns
    if not columns or (len(columns) == 1 and is_judged):
        return Heads()
    examples = chosen_examples(stream, ROWS, data.seed)
    truth, reasons = _truths(inputs, examples)
    if not truth:
        return Heads((), reasons)
    largest = max(values[0].numel() for values in truth.values())
    kept = max(2, min(len(examples), MOST_NUMBERS // max(1, largest)))
    examples = examples[:kept]
    truth = {name: torch.stack(values[:kept]) for name, values in truth.items()}
    names: tuple[str, ...] = ()
    with untouched(stream.model.module), torch.no_grad():
        given, order, group, classes = _answers(stream, inputs.at(np.asarray(examples)), truth)
    if len(truth) > 1 and (joined := _as_one(given, truth)) is not None:
        names, truth = tuple(truth), {",".join(truth): joined}
    pairs = _paired(given, truth, stream.logits_output)
    heads: list[HeadAnswers] = []
    for column, values in truth.items():
        if column not in pairs:
            reasons[column] = _unfit(column, values, given)
            continue
        answer = given[pairs[column]]
        name = pairs[column] if len(given) > 1 else ""
        judgement = judged(answer, values[list(order)], names, group, pairs[column] in classes)
        if judgement is None:
            reasons[column] = _unfit(column, values, {pairs[column]: answer})
            continue
        kept = torch.isfinite(judgement["right"])  # rows that have a label
        if len(torch.unique(group[kept])) < 2:
            reasons[column] = f"all rows with a label in column {column!r} belong to one group"
            continue
        places = kept.nonzero()[:, 0].tolist()
        judgement |= {key: judgement[key][kept] for key in ("right", "usual")}
        judgement["words"] = tuple(
            tuple(side[i] for i in places if side) for side in judgement.get("words", ((), ()))
        )
        if "mended" in judgement:
            judgement["mended"] = judgement["mended"][kept]
        if "numbers" in judgement:
            judgement["numbers"] = tuple(x[kept] for x in judgement["numbers"])
        judgement |= {"examples": tuple(examples[order[i]] for i in places), "group": group[kept]}
        heads.append(HeadAnswers(name=name, column=column, **judgement))
    return Heads(tuple(heads), reasons)


def _as_one(given: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Tensor | None:
    """Return numeric columns as the labels of the only output, if their number fits, or None."""
    wide = [x for x in given.values() if x.ndim == 2 and x.shape[1] == len(truth)]
    single = all(values.ndim == 1 for values in truth.values())
    if len(given) != 1 or not wide or not single:
        return None
    return torch.stack(list(truth.values()), 1)


def _truths(
    inputs: ItemInputs, examples: Sequence[int]
) -> tuple[dict[str, list[Tensor]], dict[str, str]]:
    """Return label columns with numbers of one shape, and the reasons against the others."""
    truths: dict[str, list[Tensor]] = {}
    reasons: dict[str, str] = {}
    for name, values in inputs.labels_of(examples).items():
        try:
            tensors = [torch.as_tensor(np.asarray(v, dtype=np.float64)) for v in values]
        except (TypeError, ValueError):
            reasons[name] = f"column {name!r} holds no numbers"
            continue
        if len({tuple(v.shape) for v in tensors}) > 1:
            reasons[name] = f"the labels in column {name!r} differ in shape from row to row"
            continue
        truths[name] = tensors
    return truths, reasons


def _answers(
    stream: LiveStream, inputs: ItemInputs, truth: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[int], Int[Tensor, "row"], set[str]]:
    """Return the model's outputs by name, with the positions and groups of their rows.

    Outputs for the classes of positions or pixels are returned as classes; they are named last.
    """
    parts: dict[str, list[Tensor]] = {}
    order: list[int] = []
    groups: list[int] = []
    numbers: dict[bytes, int] = {}
    classes: set[str] = set()
    for batch in inputs.batches(0, len(inputs)):
        order += batch.order.tolist()
        groups += [numbers.setdefault(key, len(numbers)) for key in batch.group_keys]
        for key, x in _outputs(stream, batch):
            axis = next((a for t in truth.values() if (a := _axis_of_classes(x, t))), 0)
            classes |= {key} if axis else set()
            parts.setdefault(key, []).append(x.argmax(axis) if axis else x)
    joined: dict[str, Tensor] = {}
    for key, several in parts.items():
        same = len({tuple(x.shape[1:]) for x in several}) == 1
        if same and sum(len(x) for x in several) == len(order):
            joined[key] = torch.cat(several).double()
    return joined, order, torch.tensor(groups), classes


def _axis_of_classes(x: Tensor, truth: Tensor) -> int:
    """Return the axis of an output over the classes of positions or pixels; 0 if it has none."""
    if x.ndim != truth.ndim + 1 or truth.ndim < 2:
        return 0
    n = n_classes(truth)
    if x.ndim >= 4 and x.shape[1] > 1 and x.shape[2:] == truth.shape[1:]:
        return 1
    if x.shape[1:-1] == truth.shape[1:] and 1 < n <= x.shape[-1]:
        return x.ndim - 1
    return 1 if x.shape[2:] == truth.shape[1:] and 1 < n <= x.shape[1] else 0


def _outputs(stream: LiveStream, batch: InputBatch) -> Iterator[tuple[str, Tensor]]:
    """Yield the outputs of a batch that have a row of numbers for each example."""
    output = watch(
        stream.model.module, batch, (),
        as_found=not stream.model.module.training, place=stream.probe.place,
    ).output  # fmt: skip
    for key, x in leaves(_as_batch(output, len(batch.order))).items():
        if x.ndim >= 1 and len(x) == len(batch.order) and not x.is_complex() and not x.is_nested:
            yield key, x.detach().cpu()


def _as_batch(output: Any, n: int) -> Any:
    """Stack, by name, lists with a tensor per example, as object detectors return."""
    is_list = isinstance(output, list | tuple) and len(output) == n
    if not is_list or not all(isinstance(one, Mapping) for one in output):
        return output
    names = [name for name in output[0] if all(isinstance(o.get(name), Tensor) for o in output)]
    return {
        name: torch.stack([one[name] for one in output])
        for name in names
        if len({one[name].shape for one in output}) == 1
    }


def _paired(
    given: Mapping[str, Tensor], truth: Mapping[str, Tensor], said: str | None
) -> dict[str, str]:
    """Match columns to outputs: as requested, by name, by order, or by the only fit."""
    asked = [key.strip() for key in (said or "").split(",") if key.strip() in given]
    pairs = dict(zip(truth, asked, strict=False))
    pairs |= {c: c for c in truth if c in given and c not in pairs}
    if len(given) == len(truth) and not pairs:
        ordered = dict(zip(truth, given, strict=True))
        if all(_fits(given[key], truth[c]) for c, key in ordered.items()):
            return ordered
    for needs_width in (True, False):
        for column, values in truth.items():
            free = [k for k, x in given.items() if k not in pairs.values() and _fits(x, values)]
            wide = [k for k in free if given[k].shape[1:2] == (n_classes(values),)]
            fit = wide if needs_width else free
            if column not in pairs and len(fit) == 1:
                pairs[column] = fit[0]
    return pairs


def _fits(said: Tensor, truth: Tensor) -> bool:
    """Return whether the shapes of an output and of the labels match."""
    if said.shape == truth.shape or said.shape == (*truth.shape, 1):
        return True
    if said.ndim == truth.ndim + 1 and said.shape[:1] + said.shape[2:] == truth.shape:
        return said.ndim > 2 or n_classes(truth) in (said.shape[1], said.shape[1] + 1)
    return False


def _unfit(column: str, values: Tensor, given: Mapping[str, Tensor]) -> str:
    shapes = ", ".join(f"{k or 'output'} {tuple(x.shape[1:])}" for k, x in given.items()) or "none"
    return (
        f"no single output of the model fits the labels in column {column!r} "
        f"({tuple(values.shape[1:]) or 'one number'} for a row); outputs: {shapes}. --logits "
        "names an output for each column"
    )
