"""How often each head of a model is right: of several heads, several labels, ranks and maps.

Run after the pass on at most 2,048 rows, where one column of single classes or numbers does not
say it all. Boxes are judged as numbers, and only beside boxes of the same shape.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.data import ItemInputs
from sonde.findings._halves import Z
from sonde.findings.evidence import DataEvidence
from sonde.findings.self_check import chosen_examples
from sonde.tap import LiveStream
from sonde.tap.hooks.outputs import leaves
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch

ROWS: Final = 2048
MOST_NUMBERS: Final = 2**24
NOTHING: Final = 255  # of a map: what many masks write where nobody says what is there
GAIN: Final = 0.05
"""Share of answers that must be right beyond the present ones for another order to be named."""

Kind = Literal["accuracy", "label_accuracy", "rank_accuracy", "pixel_accuracy", "rms_error"]


@dataclass(frozen=True)
class Part:
    """One of several labels, or one class of a map: how often it is right, or its overlap."""

    name: str
    value: float
    usual: float
    lead_error: float = 0.0


@dataclass(frozen=True, eq=False)
class HeadAnswers:
    """The answers of a head, compared with a column of labels.

    Parameters
    ----------
    name, column : str
        The output of the model (empty if it is the only one), and the column of its labels.
    measure : str
    right : Float[Tensor, "row"]
        Share of each row's answers that are right; of numbers the mean squared error.
    usual : Float[Tensor, "row"]
        The same of saying the commonest answer, or the mean, for every row.
    examples : tuple of int
        Of each row, by planned order.
    whole : float
        Share of rows where all labels are right; NaN for a single answer.
    overlap : float
        Mean intersection over union of the classes of a map; NaN for others.
    off : float
        Mean distance in ranks; NaN where classes have no order.
    parts : tuple of Part
    words : (tuple of str, tuple of str)
        Truth and answer of each row, in words; empty where they are too long.
    other : (str, float) or None
        What turns the answers into the labels far better, in words, and the share right then.
    """

    name: str
    column: str
    measure: Kind
    right: Float[Tensor, "row"]
    usual: Float[Tensor, "row"]
    examples: tuple[int, ...]
    whole: float = math.nan
    overlap: float = math.nan
    off: float = math.nan
    parts: tuple[Part, ...] = ()
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    other: tuple[str, float] | None = None

    @property
    def value(self) -> float:
        """Share of right answers, or the root of the mean squared error."""
        mean = float(self.right.mean())
        return mean**0.5 if self.measure == "rms_error" else mean

    @property
    def commonest(self) -> float:
        """The same of the commonest answer, or of the mean, alone."""
        mean = float(self.usual.mean())
        return mean**0.5 if self.measure == "rms_error" else mean

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the value over rows."""
        se = float(self.right.std()) / max(1, len(self.right)) ** 0.5
        if self.measure == "rms_error":
            se = se / (2 * self.value) if self.value > 0 else 0.0
            return max(0.0, self.value - Z * se), self.value + Z * se
        return max(0.0, self.value - Z * se), min(1.0, self.value + Z * se)

    @property
    def lead(self) -> tuple[float, float]:
        """By how much the answers are better than the commonest one, and the standard error."""
        more = self.right - self.usual
        if self.measure == "rms_error":
            more = -more / self.usual.mean().clamp(min=1e-300)
        return float(more.mean()), float(more.std()) / max(1, len(more)) ** 0.5


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads that could be judged, and why others could not, by their columns."""

    found: tuple[HeadAnswers, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])


def of_head(head: HeadAnswers) -> dict[str, Any]:
    """Return the figures of a head for the report."""
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
    """Return truth, answer, loss and whether it is right of each example that a head judged.

    The loss is the share of wrong answers, the distance in ranks, or the mean squared error.
    """
    is_number = head.measure == "rms_error"
    of_map = head.measure == "pixel_accuracy"
    found: dict[int, dict[str, Any]] = {}
    for i, (example, right) in enumerate(zip(head.examples, head.right.tolist(), strict=True)):
        row: dict[str, Any] = {"loss": right if is_number else 1 - right}
        row["right"] = None if is_number or of_map else right == 1
        if head.words[0]:
            row |= {"truth": head.words[0][i], "answer": head.words[1][i]}
        if head.measure == "rank_accuracy":
            row["loss"] = float(abs(int(row["truth"]) - int(row["answer"])))
        found[example] = row
    return found


def head_answers(stream: LiveStream, data: DataEvidence, is_judged: bool) -> Heads:
    """Judge each head by its column of labels; nothing where one column of classes says it all.

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
        given, order = _answers(stream, inputs.at(np.asarray(examples)), truth)
    if len(truth) > 1 and (joined := _as_one(given, truth)) is not None:
        names, truth = tuple(truth), {",".join(truth): joined}
    pairs = _paired(given, truth, stream.logits_output)
    found: list[HeadAnswers] = []
    for column, values in truth.items():
        if column not in pairs:
            reasons[column] = _unfit(column, values, given)
            continue
        said = given[pairs[column]]
        rows = tuple(examples[i] for i in order)
        name = pairs[column] if len(given) > 1 else ""
        made = _judged(said, values[list(order)], names)
        if made is None:
            reasons[column] = _unfit(column, values, {pairs[column]: said})
        else:
            found.append(HeadAnswers(name=name, column=column, examples=rows, **made))
    return Heads(tuple(found), reasons)


def _as_one(given: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Tensor | None:
    """Return columns of single numbers as the labels of one output that is as wide, or None."""
    wide = [x for x in given.values() if x.ndim == 2 and x.shape[1] == len(truth)]
    single = all(values.ndim == 1 for values in truth.values())
    if len(given) != 1 or not wide or not single:
        return None
    return torch.stack(list(truth.values()), 1)


def _truths(
    inputs: ItemInputs, examples: Sequence[int]
) -> tuple[dict[str, list[Tensor]], dict[str, str]]:
    """Return the columns of labels that hold numbers of one shape, and why others do not."""
    found: dict[str, list[Tensor]] = {}
    reasons: dict[str, str] = {}
    for name, values in inputs.labels_of(examples).items():
        try:
            made = [torch.as_tensor(np.asarray(v, dtype=np.float64)) for v in values]
        except (TypeError, ValueError):
            reasons[name] = f"column {name!r} holds no numbers"
            continue
        if len({tuple(v.shape) for v in made}) > 1:
            reasons[name] = f"the labels in column {name!r} differ in shape from row to row"
            continue
        found[name] = made
    return found, reasons


def _answers(
    stream: LiveStream, inputs: ItemInputs, truth: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[int]]:
    """Return what the model gives by output, maps of classes as classes, and the rows' places."""
    parts: dict[str, list[Tensor]] = {}
    order: list[int] = []
    maps = {tuple(t.shape[1:]) for t in truth.values() if t.ndim >= 3}
    for batch in inputs.batches(0, len(inputs)):
        order += batch.order.tolist()
        for key, x in _outputs(stream, batch):
            is_map = x.ndim >= 4 and x.shape[1] > 1 and tuple(x.shape[2:]) in maps
            parts.setdefault(key, []).append(x.argmax(1) if is_map else x)
    joined: dict[str, Tensor] = {}
    for key, several in parts.items():
        same = len({tuple(x.shape[1:]) for x in several}) == 1
        if same and sum(len(x) for x in several) == len(order):
            joined[key] = torch.cat(several).double()
    return joined, order


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
    """Return a list of mappings, one for each example, as a mapping of stacked tensors."""
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
    """Return the output that answers each column: named, of its name, alone, or the only fit."""
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
            wide = [k for k in free if given[k].shape[1:2] == (_n_classes(values),)]
            fit = wide if needs_width else free
            if column not in pairs and len(fit) == 1:
                pairs[column] = fit[0]
    return pairs


def _fits(said: Tensor, truth: Tensor) -> bool:
    """Return whether an output may answer labels by its shape and theirs."""
    if said.shape == truth.shape or said.shape == (*truth.shape, 1):
        return True
    if said.ndim == truth.ndim + 1 and said.shape[:1] + said.shape[2:] == truth.shape:
        return said.ndim > 2 or _n_classes(truth) in (said.shape[1], said.shape[1] + 1)
    return False


def _n_classes(truth: Tensor) -> int:
    known = truth[torch.isfinite(truth)]
    whole = len(known) > 0 and bool((known == known.round()).all()) and float(known.min()) >= -1
    return int(known.max()) + 1 if whole else 0


def _unfit(column: str, values: Tensor, given: Mapping[str, Tensor]) -> str:
    shapes = ", ".join(f"{k or 'output'} {tuple(x.shape[1:])}" for k, x in given.items()) or "none"
    return (
        f"the labels in column {column!r}, {tuple(values.shape[1:]) or 'one number'} for a row, "
        f"fit no output of the model alone ({shapes}); --logits names one for each column"
    )


def _judged(said: Tensor, truth: Tensor, names: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return the fields of a head's answers, by what labels and outputs look like."""
    said = said.squeeze(-1) if said.shape == (*truth.shape, 1) else said
    said = said.squeeze(1) if said.ndim == truth.ndim + 1 and said.shape[1] == 1 else said
    known = truth[torch.isfinite(truth)]
    binary = bool(torch.isin(known, torch.tensor([0.0, 1.0, -1.0]).to(known)).all())
    if said.shape == truth.shape:
        alone = truth.ndim == 2 and truth.shape[1] > 1 and bool((truth.sum(1) == 1).all())
        if alone and binary:
            return _of_classes(said.argmax(1), truth.argmax(1), "accuracy")
        whole = bool((said == said.round()).all()) and not binary
        if truth.ndim >= 3 and (whole or (binary and _is_map_of_classes(said))):
            return _of_map(said, truth)
        return _of_labels(said, truth, names) if binary else _of_numbers(said, truth, names)
    if said.ndim == 2 and truth.ndim == 1:
        n = _n_classes(truth)
        if n == said.shape[1] + 1 and _is_ordered(said):
            answer = (said > _middle(said)).sum(1)
            return _of_classes(answer, truth, "rank_accuracy")
        if 1 < n <= said.shape[1]:
            return _of_classes(said.argmax(1), truth, "accuracy")
    return None


def _is_map_of_classes(said: Tensor) -> bool:
    return bool(torch.isin(said, torch.tensor([0.0, 1.0]).to(said)).all())


def _middle(said: Tensor) -> float:
    """Return the number above which an answer is yes: half of probabilities, zero of logits."""
    return 0.5 if bool(((said >= 0) & (said <= 1)).all()) else 0.0


def _is_ordered(said: Float[Tensor, "row cut"]) -> bool:
    """Return whether every row falls from cut to cut, as the chance to be beyond a rank does."""
    return bool((said.diff(dim=1) <= 1e-6).all())


def _of_classes(answer: Tensor, truth: Tensor, measure: Kind) -> dict[str, Any] | None:
    known = torch.isfinite(truth) & (truth >= 0)
    if not bool(known.any()):
        return None
    answer, truth = answer.double(), truth.double()
    right = torch.where(known, (answer == truth).double(), math.nan)
    usual = torch.where(known, (truth == truth[known].mode().values).double(), math.nan)
    off = float((answer - truth)[known].abs().mean()) if measure == "rank_accuracy" else math.nan
    words = tuple(tuple(str(int(k)) for k in rows.nan_to_num(-1)) for rows in (truth, answer))
    made = {"measure": measure, "right": right, "usual": usual, "off": off, "words": words}
    return _kept(made, known)


def _kept(made: dict[str, Any], known: Tensor) -> dict[str, Any]:
    """Return the fields with rows that have no label set to the mean of the others."""
    for name in ("right", "usual"):
        made[name] = torch.where(known, made[name], made[name][known].mean())
    return made


def _of_labels(
    said: Shaped[Tensor, "row *label"], truth: Tensor, names: Sequence[str]
) -> dict[str, Any] | None:
    """Judge answers yes or no, each by itself: several labels of a row, or the pixels of a mask."""
    known = torch.isfinite(truth) & (truth >= 0)
    if not bool(known.any()):
        return None
    answer = (said > _middle(said)).double()
    hit = torch.where(known, (answer == truth).double(), math.nan).reshape(len(said), -1)
    share = torch.where(known, truth, math.nan).reshape(len(said), -1)
    common = (share.nanmean(0) > 0.5).double()
    usual = torch.where(torch.isnan(share), math.nan, (share == common).double())
    made: dict[str, Any] = {
        "right": hit.nanmean(1), "usual": usual.nanmean(1),
        "measure": "accuracy" if truth.ndim == 1 else "label_accuracy",
    }  # fmt: skip
    if truth.ndim >= 3:
        made |= {"measure": "pixel_accuracy", **_overlaps(answer, truth, known)}
        made["other"] = _turned(answer, truth, made["right"])
    elif truth.ndim == 2:
        made["whole"] = float((torch.nan_to_num(hit, nan=1.0) == 1).all(1).double().mean())
        made["parts"] = tuple(
            Part(name, float(h.nanmean()), float(u.nanmean()), _error(h - u))
            for name, h, u in zip(_numbered(names, truth), hit.T, usual.T, strict=True)
        )
        made["other"] = _exchanged(answer, truth, float(hit.nanmean()))
        words = _numbered(names, truth)
        made["words"] = tuple(_listed(rows, words) for rows in (truth, answer))
    return _kept(made, torch.isfinite(made["right"]))


def _numbered(names: Sequence[str], truth: Shaped[Tensor, "row label"]) -> tuple[str, ...]:
    return tuple(names) or tuple(str(i) for i in range(truth.shape[1]))


def _listed(rows: Shaped[Tensor, "row label"], names: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that each row has, in words."""
    there = [[name for name, x in zip(names, row, strict=True) if x == 1] for row in rows.tolist()]
    return tuple(" + ".join(labels) or "none" for labels in there)


def _error(values: Tensor) -> float:
    known = values[torch.isfinite(values)]
    return float(known.std()) / max(1, len(known)) ** 0.5 if len(known) > 1 else math.inf


def _exchanged(answer: Tensor, truth: Tensor, own: float) -> tuple[str, float] | None:
    """Return in which order the outputs fit the labels far better, on the other half of rows."""
    half = torch.arange(len(answer)) % 2 == 0
    signs, right = 2 * answer - 1, 2 * truth - 1
    agree = (1 + signs[half].T @ torch.nan_to_num(right[half]) / half.sum()) / 2
    outputs, labels = linear_sum_assignment(agree.numpy(), maximize=True)
    order = torch.from_numpy(outputs[np.argsort(labels)])
    after = float((answer[~half][:, order] == truth[~half]).double().mean())
    moved = [f"{int(o)} for {i}" for i, o in enumerate(order) if int(o) != i]
    if after < own + GAIN or not moved:
        return None
    return f"with output {', '.join(moved)}", after


def _of_map(said: Tensor, truth: Tensor) -> dict[str, Any] | None:
    known = torch.isfinite(truth) & (truth >= 0)
    known &= (truth != NOTHING) | (said.max() >= NOTHING)
    if not bool(known.any()):
        return None
    hit = torch.where(known, (said == truth).double(), math.nan).flatten(1)
    common = truth[known].mode().values
    usual = torch.where(known, (truth == common).double(), math.nan).flatten(1)
    made: dict[str, Any] = {
        "measure": "pixel_accuracy", "right": hit.nanmean(1), "usual": usual.nanmean(1),
        **_overlaps(said, truth, known), "other": _turned(said, truth, hit.nanmean(1)),
    }  # fmt: skip
    return _kept(made, torch.isfinite(made["right"]))


def _overlaps(said: Tensor, truth: Tensor, known: Tensor) -> dict[str, Any]:
    """Return the intersection over union of each class of the labels, and their mean."""
    parts = []
    for k in truth[known].unique().tolist():
        mine, its = (said == k) & known, (truth == k) & known
        union = int((mine | its).sum())
        parts.append(Part(str(int(k)), int((mine & its).sum()) / max(1, union), 0.0))
    mean = sum(p.value for p in parts) / len(parts)
    return {"parts": tuple(parts), "overlap": mean}


def _turned(said: Tensor, truth: Tensor, right: Tensor) -> tuple[str, float] | None:
    """Return how maps of labels must be turned to fit the answers far better."""
    forms = {"turned upside down": truth.flip(-2), "mirrored": truth.flip(-1)}
    if truth.shape[-1] == truth.shape[-2]:
        forms |= {"with height and width exchanged": truth.transpose(-1, -2)}
        forms |= {"turned to the left": truth.rot90(1, (-2, -1))}
        forms |= {"turned to the right": truth.rot90(-1, (-2, -1))}
    after = {words: float((said == made).double().mean()) for words, made in forms.items()}
    best = max(after, key=lambda words: after[words])
    is_far = after[best] > float(right.nanmean()) + GAIN
    return (f"with their labels {best}", after[best]) if is_far else None


def _of_numbers(said: Tensor, truth: Tensor, names: Sequence[str]) -> dict[str, Any] | None:
    known = torch.isfinite(truth) & torch.isfinite(said)
    if not bool(known.any()):
        return None
    own = torch.where(known, (said - truth).square(), math.nan).reshape(len(said), -1).nanmean(1)
    mean = torch.where(known, truth, math.nan).nanmean(0)
    far = torch.where(known, (truth - mean).square(), math.nan)
    usual = far.reshape(len(said), -1).nanmean(1)
    made: dict[str, Any] = {"measure": "rms_error", "right": own, "usual": usual}
    if truth.ndim == 2:
        pairs = zip(_numbered(names, truth), (said - truth).T, (truth - mean).T, strict=True)
        made["parts"] = tuple(
            Part(name, *(float(x.square().nanmean()) ** 0.5 for x in (e, m)))
            for name, e, m in pairs
        )
    return _kept(made, torch.isfinite(own))
