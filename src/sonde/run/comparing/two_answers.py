"""Test whether two models give the same answers to the same inputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.paired_gains import gains_and_losses, sign_test
from sonde.data import ItemInputs
from sonde.engine.errorbars import group_error
from sonde.engine.progress import Bar
from sonde.tap import live_stream
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.session import Session
from sonde.tap.model.input_types import place_of
from sonde.tap.streams.answers import Answers, answers

EQUAL: Final = 1e-6
"""Difference of two numbers, in standard deviations, that rounding causes."""


ALPHA: Final = 0.05


@dataclass(frozen=True)
class PairedChange:
    """Mean change of a number from the first model to the second, over the same examples.

    Parameters
    ----------
    n : int
        Examples with a label.
    value : float
        Mean of the second model minus mean of the first.
    se : float
        Standard error of the difference, over groups of examples.
    p : float
        Two-sided p-value: of the sign test over groups for accuracy, of the normal law for loss.
    """

    n: int
    value: float
    se: float
    p: float


@dataclass(frozen=True)
class ClassChange:
    """Accuracy of both models on the examples of one class.

    Parameters
    ----------
    name : str
    n : int
        Examples of the class.
    right : (float, float)
    p : float
        One-sided p-value of the sign test over groups that the class lost, times the number of
        classes.
    """

    name: str
    n: int
    right: tuple[float, float]
    p: float


@dataclass(frozen=True)
class TwoAnswers:
    """Difference between the answers of two models, each example counted once.

    Parameters
    ----------
    n : int
        Examples.
    same, same_se : float
        Share of answers whose likeliest class or token is the same, and its standard error
        over groups of examples.
    divergence : float
        Mean Kullback-Leibler divergence ``KL(first || second)`` of the answers, in nats.
    right : (float, float)
        Share of right answers of each model; NaN without labels.
    loss : (float, float)
        Cross-entropy of each model, in nats per answer; NaN without labels.
    accuracy_change, loss_change : PairedChange or None
        None without labels.
    classes : tuple of ClassChange
        The classes of a classifier's labels, those that lost most first.
    """

    n: int
    same: float
    same_se: float
    divergence: float
    right: tuple[float, float]
    loss: tuple[float, float]
    accuracy_change: PairedChange | None = None
    loss_change: PairedChange | None = None
    classes: tuple[ClassChange, ...] = ()

    @property
    def lost(self) -> tuple[ClassChange, ...]:
        """Classes that lost accuracy significantly."""
        return tuple(c for c in self.classes if c.p < ALPHA and c.right[1] < c.right[0])


@dataclass(frozen=True)
class TwoNumbers:
    """Difference between the numbers that two regressions answer.

    Parameters
    ----------
    n : int
        Examples with finite answers of both models.
    same : float
        Fraction of equal answers, up to a millionth of a standard deviation.
    difference : float
        Root mean square difference, in standard deviations of the first model's answers.
    r2 : (float, float)
        R^2 of each model against the targets; NaN without targets.
    """

    n: int
    same: float
    difference: float
    r2: tuple[float, float]


def compare_numbers(
    first: Model, second: Model, inputs: Inputs, others: Inputs, *, progress: bool = True
) -> TwoNumbers | None:
    """Return how the numbers of two regressions differ, or None if they give no single number.

    Parameters
    ----------
    first, second : Model
    inputs, others : Inputs
        The same data, as inputs of each model.
    progress : bool, default=True
    """
    if list(inputs.group_keys) != list(others.group_keys):
        return None
    sides: list[tuple[Tensor, Tensor]] = []
    for model, data in ((first, inputs), (second, others)):
        key, parts, order = live_stream(model, data).logits_key, list[Tensor](), list[Tensor]()
        with Bar("answers", len(data), shown=progress) as bar:
            for batch in data.batches(0, len(data)):
                numbers = None if key is None else _numbers(model, batch, key)
                if numbers is None:
                    return None
                parts.append(numbers)
                order.append(batch.order)
                bar.advance(len(batch))
        if not parts:
            return None
        sides.append((torch.cat(parts), torch.cat(order)))
    (a, rows), (b, same_rows) = sides
    if not torch.equal(rows, same_rows):
        return None
    target = _targets(inputs, rows)
    is_known = torch.isfinite(a) & torch.isfinite(b)
    spread = float(a[is_known].std(correction=0))
    gap = (a - b)[is_known] / max(spread, 1e-300)
    r2 = tuple(_r2(x, target) for x in (a, b))
    return TwoNumbers(
        n=int(is_known.sum()),
        same=float((gap.abs() <= EQUAL).double().mean()),
        difference=float(gap.square().mean()) ** 0.5,
        r2=(r2[0], r2[1]),
    )


def _numbers(model: Model, batch: InputBatch, key: str) -> Float[Tensor, "row"] | None:
    with Session(model.module) as session:
        output = session.run(*place_of(model.module, batch).call(batch.args, batch.kwargs))
    tensor = find(output, key)
    if tensor is None or tensor.numel() != len(batch):
        return None
    return tensor.detach().reshape(-1).double().cpu()


def _targets(inputs: Inputs, rows: Tensor) -> Float[Tensor, "row"]:
    """Return the target of each example: numbers, or labels; NaN without one."""
    nothing = torch.full((len(rows),), math.nan, dtype=torch.float64)
    if not isinstance(inputs, ItemInputs):
        return nothing
    listing = inputs.listing
    if listing.target is not None:
        return torch.as_tensor(listing.target).double()[rows]
    label = torch.as_tensor(listing.label).double()[rows]
    return torch.where(label >= 0, label, nothing)


def _r2(x: Float[Tensor, "row"], target: Float[Tensor, "row"]) -> float:
    is_known = torch.isfinite(x) & torch.isfinite(target)
    if int(is_known.sum()) < 2:
        return math.nan
    return 1 - float((x - target)[is_known].square().mean() / target[is_known].var(correction=0))


def compare_answers(
    first: Model, second: Model, inputs: Inputs, others: Inputs, *, progress: bool = True
) -> TwoAnswers | None:
    """Return how the answers differ, or None if the models do not answer the same question.

    Parameters
    ----------
    first, second : Model
    inputs, others : Inputs
        The same data, as inputs of each model.
    progress : bool, default=True
    """
    keys = [
        live_stream(model, data).logits_key for model, data in ((first, inputs), (second, others))
    ]
    if None in keys or list(inputs.group_keys) != list(others.group_keys):
        return None
    parts: list[Tensor] = []
    groups: list[bytes] = []
    pairs = zip(inputs.batches(0, len(inputs)), others.batches(0, len(others)), strict=False)
    with Bar("answers", len(inputs), shown=progress) as bar:
        for one, two in pairs:
            a = answers(first, first.module, one, keys[0])
            b = answers(second, second.module, two, keys[1])
            if a.log_p.shape != b.log_p.shape or not torch.equal(a.truth, b.truth):
                return None  # other classes, or texts cut into other tokens
            bar.advance(len(one))
            if a.log_p.shape[1] == 1 and not bool((a.truth >= 0).any()):
                continue  # single numbers without labels: classes or a regression, unknown
            if not (a.has_classes and b.has_classes):
                return None  # numbers, not classes
            parts.append(_compared_figures(a, b, len(one)))
            groups += one.group_keys
    return summary(torch.cat(parts), groups, _class_names(first, inputs)) if parts else None


def _class_names(model: Model, inputs: Inputs) -> dict[int, str]:
    """Return the names of class numbers that are known."""
    own = getattr(inputs, "label_names", ())
    given = getattr(model.config, "id2label", None) or {}
    return {int(k): str(v) for k, v in given.items()} | dict(enumerate(own))


def _compared_figures(a: Answers, b: Answers, n: int) -> Tensor:
    """Return per example: agreement, divergence, correctness and loss of both models, class.

    The class is -1 where an example has no label or several answers.
    """
    gap = (a.log_p.exp() * (a.log_p - b.log_p)).nan_to_num(0.0).sum(1)
    # NaN is no answer: it agrees with none and is never correct
    best = [x.log_p.argmax(1).masked_fill(x.log_p.isnan().any(1), -2) for x in (a, b)]
    every = Answers(a.log_p, torch.zeros_like(a.truth), a.example)
    same = (best[0] == best[1]) & (best[0] >= 0)
    columns = [every.per_example(v, n) for v in (same.double(), gap)]
    columns += [
        x.per_example((top == x.truth).double(), n) for x, top in zip((a, b), best, strict=True)
    ]
    columns += [x.per_example(-x.log_p_of_truth, n) for x in (a, b)]
    of_class = torch.full((n,), -1.0, dtype=torch.float64)
    if len(a.truth) == n == len(a.example.unique()):
        of_class[a.example] = a.truth.double()
    return torch.stack([*columns, of_class], dim=1)


def summary(
    each: Float[Tensor, "example figure"],
    keys: Sequence[bytes],
    names: Mapping[int, str] | None = None,
) -> TwoAnswers:
    """Return the means over examples with an answer.

    Parameters
    ----------
    each : Float[Tensor, "example figure"]
        Agreement, divergence, correctness and loss of both models, and the class of each example.
    keys : sequence of bytes
        The group of each example.
    names : mapping of int to str, optional
        Names of classes.
    """
    is_known = ~each[:, 0].isnan()
    each, numbers = each[is_known], {key: i for i, key in enumerate(dict.fromkeys(keys))}
    group = torch.tensor([numbers[key] for key in keys], dtype=torch.int64)[is_known]
    n, mean = len(each), each.nanmean(0).tolist()
    se = group_error(each[:, 0] / max(n, 1), group, len(group.unique()))
    right, loss = each[:, 3] - each[:, 2], each[:, 5] - each[:, 4]
    return TwoAnswers(
        n,
        mean[0],
        se,
        mean[1],
        (mean[2], mean[3]),
        (mean[4], mean[5]),
        _change(right, group, is_signs=True),
        _change(loss, group, is_signs=False),
        _classes(each, group, names or {}),
    )


def _change(
    gain: Float[Tensor, "example"], group: Int[Tensor, "example"], is_signs: bool
) -> PairedChange | None:
    """Return the mean paired change over examples with a label; None if no example has one."""
    is_known = gain.isfinite()
    gain, group = gain[is_known], group[is_known]
    n = len(gain)
    if not n:
        return None
    value = float(gain.mean())
    se = group_error(gain / n, group, len(group.unique()))
    if is_signs:
        better, worse = gains_and_losses(gain, group)
        p = min(1.0, 2 * min(sign_test(better, worse), sign_test(worse, better)))
    else:
        p = math.nan if math.isnan(se) else math.erfc(abs(value) / max(se, 1e-300) / math.sqrt(2))
    return PairedChange(n, value, se, 1.0 if value == 0 else p)


def _classes(
    each: Float[Tensor, "example figure"], group: Int[Tensor, "example"], names: Mapping[int, str]
) -> tuple[ClassChange, ...]:
    """Return the accuracy of both models by class, the largest loss first."""
    is_known = (each[:, 6] >= 0) & each[:, 2].isfinite() & each[:, 3].isfinite()
    each, group, changes = each[is_known], group[is_known], list[ClassChange]()
    classes = each[:, 6].unique().long().tolist()
    for k in classes:
        of_class = each[:, 6] == k
        before, after = each[of_class, 2], each[of_class, 3]
        better, worse = gains_and_losses(after - before, group[of_class])
        p = min(1.0, len(classes) * sign_test(worse, better))
        right = float(before.mean()), float(after.mean())
        changes.append(ClassChange(names.get(k, str(k)), int(of_class.sum()), right, p))
    return tuple(sorted(changes, key=lambda c: c.right[1] - c.right[0]))
