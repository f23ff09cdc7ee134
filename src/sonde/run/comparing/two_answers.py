"""Test whether two models give the same answers to the same inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.inputs import Inputs, Model
from sonde.engine.errorbars import group_error
from sonde.engine.progress import Bar
from sonde.tap import live_stream
from sonde.tap.streams.answers import Answers, answers


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
    """

    n: int
    same: float
    same_se: float
    divergence: float
    right: tuple[float, float]
    loss: tuple[float, float]


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
    return summary(torch.cat(parts), groups) if parts else None


def _compared_figures(a: Answers, b: Answers, n: int) -> Tensor:
    """Return per example: agreement, divergence, and correctness and loss of both models."""
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
    return torch.stack(columns, dim=1)


def summary(each: Float[Tensor, "example figure"], keys: Sequence[bytes]) -> TwoAnswers:
    """Return the means over examples with an answer; ``keys`` are the groups of the examples."""
    known = ~each[:, 0].isnan()
    each, numbers = each[known], {key: i for i, key in enumerate(dict.fromkeys(keys))}
    group = torch.tensor([numbers[key] for key in keys], dtype=torch.int64)[known]
    n, mean = len(each), each.nanmean(0).tolist()
    se = group_error(each[:, 0] / max(n, 1), group, len(group.unique()))
    return TwoAnswers(n, mean[0], se, mean[1], (mean[2], mean[3]), (mean[4], mean[5]))
