"""Accuracy of the answers of one head, judged by the kind of its labels.

Each function returns the fields of a ``HeadAnswers``; rows without a label are NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sonde.engine.errorbars import group_error
from sonde.findings.evidence.answers.number_answers import forms_fitted
from sonde.findings.trial import chooses
from sonde.findings.words.text import number

NOTHING: Final = 255  # of a map: what many masks write where nobody says what is there
IGNORED: Final = -100
MOVED_ROWS: Final = 20
MOST_CLASSES: Final = 256
GAIN: Final = 0.05
"""Fraction of the answers by which another order must be more accurate before it is reported."""

R2_GAIN: Final = 0.2
"""Gain of R^2 by which numbers on another scale must fit better before it is reported."""

Fields = dict[str, Any]
"""Some of the fields of a ``HeadAnswers``, by name."""
Kind = Literal["accuracy", "label_accuracy", "rank_accuracy", "pixel_accuracy", "rms_error"]


@dataclass(frozen=True)
class Part:
    """One label, class of a map, or number: its accuracy, overlap or rms error."""

    name: str
    value: float
    usual: float
    lead_error: float = 0.0


def class_axis(said: Tensor, truth: Tensor) -> int:
    """Return the axis of the classes in the outputs for labels at each position or pixel.

    Models of images have it after the row, models of tokens at the end.

    Examples
    --------
    >>> class_axis(torch.zeros(5, 3, 7), torch.zeros(5, 7)), class_axis(
    ...     torch.zeros(5, 7, 3), torch.zeros(5, 7)
    ... )
    (1, 2)
    """
    is_last = said.shape[:-1] == truth.shape and said.shape[:1] + said.shape[2:] != truth.shape
    return said.ndim - 1 if is_last else 1


def n_classes(truth: Tensor) -> int:
    """Return the number of classes, counted from 0, or 0 if the labels are not classes.

    -100 is what torch's losses leave out.
    """
    numbers = truth[torch.isfinite(truth) & (truth != IGNORED)]
    whole = (
        len(numbers) > 0 and bool((numbers == numbers.round()).all()) and float(numbers.min()) >= -1
    )
    return int(numbers.max()) + 1 if whole else 0


def judged(
    outputs: Tensor,
    truth: Tensor,
    names: Sequence[str],
    group: Int[Tensor, "row"],
    are_classes: bool = False,
) -> dict[str, Any] | None:
    """Return the statistics of a head's answers, or None if its outputs do not fit the labels.

    ``are_classes`` says that the answers are classes of positions or pixels.
    """
    if are_classes and outputs.shape == truth.shape and truth.ndim == 2:
        return _of_positions(outputs, truth, group) | {"of_classes": True}
    outputs = outputs.squeeze(-1) if outputs.shape == (*truth.shape, 1) else outputs
    outputs = (
        outputs.squeeze(1) if outputs.ndim == truth.ndim + 1 and outputs.shape[1] == 1 else outputs
    )
    numbers = truth[torch.isfinite(truth)]
    binary = bool(torch.isin(numbers, torch.tensor([0.0, 1.0, -1.0]).to(numbers)).all())
    if outputs.shape == truth.shape:
        alone = truth.ndim == 2 and truth.shape[1] > 1 and bool((truth.sum(1) == 1).all())
        if alone and binary:
            return _of_classes(outputs.argmax(1), truth.argmax(1), "accuracy")
        whole = bool((outputs == outputs.round()).all()) and not binary
        if truth.ndim >= 3 and (whole or (binary and _is_map_of_classes(outputs))):
            return _with_classes(_of_map(outputs, truth, group), are_classes)
        return (
            _of_labels(outputs, truth, names, group)
            if binary
            else _of_numbers(outputs, truth, names)
        )
    if outputs.ndim == 2 and truth.ndim == 1:
        n = n_classes(truth)
        if n == outputs.shape[1] + 1 and _is_ordered(outputs):
            answer = (outputs > _middle(outputs)).sum(1)
            return _of_classes(answer, truth, "rank_accuracy")
        if 1 < n <= outputs.shape[1]:
            return _of_classes(outputs.argmax(1), truth, "accuracy")
    return None


def _with_classes(made: dict[str, Any] | None, are_classes: bool) -> dict[str, Any] | None:
    return None if made is None else made | {"of_classes": are_classes}


def _of_positions(
    said: Float[Tensor, "row position"],
    truth: Float[Tensor, "row position"],
    group: Int[Tensor, "row"],
) -> dict[str, Any]:
    """Judge a class at each position, such as the tag of each token."""
    is_known = torch.isfinite(truth) & (truth >= 0)
    hit = torch.where(is_known, (said == truth).double(), math.nan)
    common = truth[is_known].mode().values if bool(is_known.any()) else 0
    usual = torch.where(is_known, (truth == common).double(), math.nan)
    some = is_known.any(1)
    parts: list[Part] = []
    for k in truth[is_known].unique().tolist():
        h = torch.where(is_known, ((said == k) == (truth == k)).double(), math.nan)
        is_k = float((truth[is_known] == k).double().mean())
        u = torch.where(is_known, ((truth == k) == (is_k > 0.5)).double(), math.nan)
        error = _error(h.nanmean(1) - u.nanmean(1), group)
        parts.append(Part(str(int(k)), float(h.nanmean()), float(u.nanmean()), error))
    return {
        "measure": "label_accuracy", "right": hit.nanmean(1), "usual": usual.nanmean(1),
        "whole": float((hit[some].nan_to_num(1.0) == 1).all(1).double().mean()),
        "parts": tuple(parts), **_renamed(said, truth, is_known, group),
    }  # fmt: skip


def _is_map_of_classes(said: Tensor) -> bool:
    return bool(torch.isin(said, torch.tensor([0.0, 1.0]).to(said)).all())


def _middle(said: Tensor) -> float:
    """Return the decision threshold: 0.5 for probabilities, 0 for logits."""
    return 0.5 if bool(((said >= 0) & (said <= 1)).all()) else 0.0


def _is_ordered(said: Float[Tensor, "row cut"]) -> bool:
    """Return whether the outputs decrease in every row, as cumulative rank probabilities do."""
    return bool((said.diff(dim=1) <= 1e-6).all())


def _of_classes(answer: Tensor, truth: Tensor, measure: Kind) -> dict[str, Any] | None:
    is_known = torch.isfinite(truth) & (truth >= 0)
    if not bool(is_known.any()):
        return None
    answer, truth = answer.double(), truth.double()
    right = torch.where(is_known, (answer == truth).double(), math.nan)
    usual = torch.where(is_known, (truth == truth[is_known].mode().values).double(), math.nan)
    off = float((answer - truth)[is_known].abs().mean()) if measure == "rank_accuracy" else math.nan
    words = tuple(tuple(str(int(k)) for k in rows.nan_to_num(-1)) for rows in (truth, answer))
    judgement = {"measure": measure, "right": right, "usual": usual, "off": off, "words": words}
    return judgement | ({"other": _stepped((answer - truth)[is_known], truth[is_known])}
                   if measure == "accuracy" and truth.ndim == 1 else {})  # fmt: skip


def _stepped(step: Float[Tensor, "row"], truth: Float[Tensor, "row"]) -> tuple[str, float] | None:
    """Return the label shift chosen on every second row, and its accuracy.

    None unless there are five classes or more, the step is correct on half of the held-out rows,
    and unchanged answers are correct on fewer.
    """
    chosen, judge = step[::2], step[1::2]
    if len(judge) < MOVED_ROWS:
        return None
    best = chosen.mode().values
    hit = judge == best
    right = float(hit.double().mean())
    n_classes = len(torch.unique(truth[1::2][hit]))
    if best == 0 or right < 0.5 or float((judge == 0).double().mean()) >= 0.5 or n_classes < 5:
        return None
    return f"with all labels moved by {int(best):+d}", right


def _of_labels(
    said: Shaped[Tensor, "row *label"],
    truth: Tensor,
    names: Sequence[str],
    group: Int[Tensor, "row"],
) -> dict[str, Any] | None:
    """Judge binary answers one by one: several labels of a row, or the pixels of a mask."""
    is_known = torch.isfinite(truth) & (truth >= 0)
    if not bool(is_known.any()):
        return None
    answer = (said > _middle(said)).double()
    hit = torch.where(is_known, (answer == truth).double(), math.nan).reshape(len(said), -1)
    share = torch.where(is_known, truth, math.nan).reshape(len(said), -1)
    common = (share.nanmean(0) > 0.5).double()
    usual = torch.where(torch.isnan(share), math.nan, (share == common).double())
    judgement: dict[str, Any] = {
        "right": hit.nanmean(1), "usual": usual.nanmean(1),
        "measure": "accuracy" if truth.ndim == 1 else "label_accuracy",
    }  # fmt: skip
    if truth.ndim >= 3:
        judgement |= {"measure": "pixel_accuracy", **_overlaps(answer, truth, is_known)}
        judgement["other"] = _turned(answer, truth, judgement["right"])
    elif truth.ndim == 2:
        some = ~hit.isnan().all(1)
        judgement["whole"] = float((hit[some].nan_to_num(1.0) == 1).all(1).double().mean())
        judgement["parts"] = tuple(
            Part(name, float(h.nanmean()), float(u.nanmean()), _error(h - u, group))
            for name, h, u in zip(_numbered(names, truth), hit.T, usual.T, strict=True)
        )
        judgement["other"] = _exchanged(answer, truth, float(hit.nanmean()))
        words = _numbered(names, truth)
        judgement["words"] = tuple(_listed(rows, words) for rows in (truth, answer))
    return judgement


def _numbered(names: Sequence[str], truth: Shaped[Tensor, "row label"]) -> tuple[str, ...]:
    return tuple(names) or tuple(str(i) for i in range(truth.shape[1]))


def _listed(rows: Shaped[Tensor, "row label"], names: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of each row as text."""
    there = [[name for name, x in zip(names, row, strict=True) if x == 1] for row in rows.tolist()]
    return tuple(" + ".join(labels) or "none" for labels in there)


def _error(values: Float[Tensor, "row"], group: Int[Tensor, "row"]) -> float:
    """Return the standard error of the mean over groups; infinite for fewer than two groups."""
    is_known = torch.isfinite(values)
    n_groups = len(torch.unique(group[is_known]))
    if n_groups < 2:
        return math.inf
    return group_error(values[is_known] / int(is_known.sum()), group[is_known], n_groups)


def _exchanged(answer: Tensor, truth: Tensor, own: float) -> tuple[str, float] | None:
    """Return the output order that fits held-out rows far better, and its accuracy."""
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


def _of_map(said: Tensor, truth: Tensor, group: Int[Tensor, "row"]) -> Fields | None:
    is_known = torch.isfinite(truth) & (truth >= 0)
    is_known &= (truth != NOTHING) | (said.max() >= NOTHING)
    if not bool(is_known.any()):
        return None
    hit = torch.where(is_known, (said == truth).double(), math.nan).flatten(1)
    common = truth[is_known].mode().values
    usual = torch.where(is_known, (truth == common).double(), math.nan).flatten(1)
    judgement: dict[str, Any] = {
        "measure": "pixel_accuracy", "right": hit.nanmean(1), "usual": usual.nanmean(1),
        **_overlaps(said, truth, is_known),
    }  # fmt: skip
    turned = _turned(said, truth, hit.nanmean(1))
    renamed = _renamed(said, truth, is_known, group)
    is_turned = turned is not None and turned[1] > renamed.get("other", ("", 0.0))[1]
    return judgement | ({"other": turned} if is_turned else renamed)


def _overlaps(said: Tensor, truth: Tensor, known: Tensor) -> dict[str, Any]:
    """Return the intersection over union of each class of the labels, and their mean."""
    parts = []
    for k in truth[known].unique().tolist():
        predicted, its = (said == k) & known, (truth == k) & known
        union = int((predicted | its).sum())
        parts.append(Part(str(int(k)), int((predicted & its).sum()) / max(1, union), 0.0))
    mean = sum(p.value for p in parts) / len(parts)
    return {"parts": tuple(parts), "overlap": mean}


def _turned(said: Tensor, truth: Tensor, right: Tensor) -> tuple[str, float] | None:
    """Return the rotation or mirroring of label maps that fits the answers far better."""
    forms = {"turned upside down": truth.flip(-2), "mirrored": truth.flip(-1)}
    if truth.shape[-1] == truth.shape[-2]:
        forms |= {"with height and width exchanged": truth.transpose(-1, -2)}
        forms |= {"turned to the left": truth.rot90(1, (-2, -1))}
        forms |= {"turned to the right": truth.rot90(-1, (-2, -1))}
    after = {words: float((said == turned).double().mean()) for words, turned in forms.items()}
    best = max(after, key=lambda words: after[words])
    is_far = after[best] > float(right.nanmean()) + GAIN
    return (f"with their labels {best}", after[best]) if is_far else None


def _renamed(said: Tensor, truth: Tensor, known: Tensor, group: Int[Tensor, "row"]) -> Fields:
    """Return the names of classes under which positions or pixels are right, and how many are.

    The rows that choose changes choose the names, one to one; the others judge. Empty unless most
    positions of each renamed class have the new name there.
    """
    classes = torch.unique(torch.cat([truth[known], said[known]])).long()
    chosen = chooses(group)
    if not 2 <= len(classes) <= MOST_CLASSES or min(int(chosen.sum()), int((~chosen).sum())) < 2:
        return {}
    at = [torch.searchsorted(classes, x.nan_to_num().long()) for x in (truth, said)]

    def counts(rows: Tensor) -> Float[Tensor, "label answer"]:
        some, n = known[rows], len(classes)
        pairs = n * at[0][rows][some] + at[1][rows][some]
        return torch.bincount(pairs, minlength=n * n).reshape(n, n).double()

    called = torch.from_numpy(linear_sum_assignment(counts(chosen).numpy(), maximize=True)[1])
    judge = counts(~chosen)
    hit = judge.gather(1, called[:, None])[:, 0]
    moved = [i for i, c in enumerate(called.tolist()) if i != c and float(judge[i].sum())]
    own, after = (float(x.sum() / judge.sum()) for x in (judge.diagonal(), hit))
    most = hit > 0.5 * judge.sum(1)
    if not moved or not after >= own + GAIN or not bool(most[moved].all()):
        return {}
    names = ", ".join(f"{int(classes[i])} -> {int(classes[called[i]])}" for i in moved[:6])
    words = f"with labels renamed ({names}{', ...' if len(moved) > 6 else ''})"
    right = torch.where(
        known, (called[at[0].clamp(max=len(called) - 1)] == at[1]).double(), math.nan
    )
    mended = torch.where(chosen, math.nan, right.flatten(1).nanmean(1))
    return {"other": (words, after), "mended": mended}


def _of_numbers(said: Tensor, truth: Tensor, names: Sequence[str]) -> dict[str, Any] | None:
    is_known = torch.isfinite(truth) & torch.isfinite(said)
    if not bool(is_known.any()):
        return None
    own = torch.where(is_known, (said - truth).square(), math.nan).reshape(len(said), -1).nanmean(1)
    mean = torch.where(is_known, truth, math.nan).nanmean(0)
    far = torch.where(is_known, (truth - mean).square(), math.nan)
    usual = far.reshape(len(said), -1).nanmean(1)
    judgement: dict[str, Any] = {
        "measure": "rms_error", "right": own, "usual": usual,
        "numbers": tuple(x.reshape(len(said), -1) for x in (said, truth)),
    }  # fmt: skip
    if truth.ndim == 2:
        pairs = zip(_numbered(names, truth), (said - truth).T, (truth - mean).T, strict=True)
        judgement["parts"] = tuple(
            Part(name, *(float(x.square().nanmean()) ** 0.5 for x in (e, m)))
            for name, e, m in pairs
        )
        judgement["words"] = _worst_numbers(said, truth, names)
    return judgement | _rescaled(said, truth)


def _worst_numbers(
    said: Float[Tensor, "row label"], truth: Float[Tensor, "row label"], names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the target and the answer of each row's worst number, in words.

    The worst number has the largest squared error, in variances of its targets.
    """
    variance = (truth - truth.nanmean(0)).square().nanmean(0).clamp(min=1e-300)
    worst = ((said - truth).square() / variance).nan_to_num(-1.0).argmax(1, keepdim=True)
    targets, answers = (x.gather(1, worst)[:, 0].tolist() for x in (truth, said))
    places = [names[i] if names else f"number {i}" for i in worst[:, 0].tolist()]
    words = (f"{number(x, 3)} ({name})" for x, name in zip(targets, places, strict=True))
    return tuple(words), tuple(map(repr, answers))


def _rescaled(said: Tensor, truth: Tensor) -> dict[str, Any]:
    """Return the simplest change of all numbers that fits the targets far better, if there is one.

    Every second row fits it, the others judge it by the mean R^2 of their numbers.
    """
    is_known = (torch.isfinite(truth) & torch.isfinite(said)).reshape(len(said), -1).all(1)
    x, y = said[is_known].double().reshape(int(is_known.sum()), -1), truth[is_known].double()
    y = y.reshape(x.shape)
    fits = torch.arange(len(x)) % 2 == 0
    spread = y.var(0, correction=0)
    if len(x) < 2 * MOVED_ROWS or not bool((spread > 0).all()):
        return {}

    def reached(given: Tensor) -> float:
        errors = ((given - y).square() / spread)[~fits]
        return float(1 - errors.nan_to_num(1.0).mean())

    tried_forms = [
        (form, reached(form.of(x))) for form in forms_fitted(x[fits].flatten(), y[fits].flatten())
    ]
    best = max(r for _, r in tried_forms)
    form, after = next(
        (f, r) for f, r in tried_forms if 1 - r <= (1.5 if f.is_known else 1.1) * (1 - best)
    )
    if after < max(reached(x), 0.0) + R2_GAIN:
        return {}
    return {"other": (f"with {form.words}", after), "line": form.line, "own": reached(x)}
