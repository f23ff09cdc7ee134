"""Log loss of the answers, at a temperature fitted on the selection rows."""

from collections.abc import Callable, Collection
from functools import cache
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.findings.evidence.answers.answers import are_probabilities
from sonde.findings.evidence.shared_rows import two_logits

RIDGE: Final = 1e-4
TINY: Final = 1e-30
"""Least probability whose logarithm is taken."""
TEMPERATURES: Final = tuple(2.0 ** (k / 2) for k in range(-6, 14))
"""Temperatures of a coarse search, from 1/8 to 91."""
GRID, LEAST_LABELLED = tuple(2 ** (k / 16) for k in range(-64, 105)), 8


def cooled_loss(
    logits: Float[Tensor, "row class"], label: Int[Tensor, "row"], chooses: Bool[Tensor, "row"]
) -> Float[Tensor, "row"] | None:
    """Return the log loss of each row at one common temperature; None if it is not known.

    A change that only makes answers surer, or less sure, is no repair of what is wrong: so changes
    are compared at the best temperature of each.

    Examples
    --------
    >>> logits, label = torch.tensor([[4.0, 0.0], [0.0, 8.0]]), torch.tensor([0, 1])
    >>> cooled_loss(logits.repeat(9, 1), label.repeat(9), torch.ones(18).bool())[0] < 0.01
    tensor(True)
    """
    logits = as_logits(two_logits(logits))
    if len(label) != len(logits) or int(chooses.sum()) < LEAST_LABELLED:
        return None
    if not bool(torch.isfinite(logits).all()) or int(label.max()) >= logits.shape[1]:
        return None
    losses = [cross_entropy(logits / t, label, reduction="none") for t in GRID]
    return min(losses, key=lambda loss: float(loss[chooses].mean()))


def as_logits(answers: Float[Tensor, "row class"]) -> Float[Tensor, "row class"]:
    """Return logits in float64; probabilities as their logarithms."""
    answers = answers.double()
    return answers.clamp(min=TINY).log() if are_probabilities(answers) else answers


def crossed_loss(
    logits: Float[Tensor, "row class"],
    label: Int[Tensor, "row"],
    half: Bool[Tensor, "row"],
    biased: bool = False,
) -> Float[Tensor, "row"] | None:
    """Return the log loss of each row at the temperature fitted on the other half.

    With ``biased``, the other half also chooses one class and a bias of its logit: what such a bias
    repairs as well says nothing about the inputs.
    """
    crossed = torch.zeros(len(label), dtype=torch.float64)
    for fits in (half, ~half):
        loss = (_one_bias if biased else cooled_loss)(logits, label, fits)
        if loss is None:
            return None
        crossed[~fits] = loss[~fits]
    return crossed


def _one_bias(
    logits: Float[Tensor, "row class"], label: Int[Tensor, "row"], fits: Bool[Tensor, "row"]
) -> Float[Tensor, "row"] | None:
    """Return the log loss of each row with one class bias and a factor fitted on some rows."""
    if cooled_loss(logits, label, fits) is None:
        return None
    x = as_logits(two_logits(logits))
    losses = list[Tensor]()
    for one in torch.eye(x.shape[1], dtype=torch.float64)[:, :, None]:
        scale, bias = fitted_constants(x[fits], label[fits], one)
        losses.append(cross_entropy(scale * x + bias, label, reduction="none"))
    return min(losses, key=lambda loss: float(loss[fits].mean()))


def fitted_constants(
    logits: Float[Tensor, "row class"], truth: Int[Tensor, "row"], basis: Float[Tensor, "class of"]
) -> tuple[Tensor, Tensor]:
    """Return the logit factor and the constants in the span of ``basis`` that fit best."""
    x, span = logits.double().numpy(), basis.double().numpy()
    given = np.eye(x.shape[1])[truth.numpy()]

    def loss(weight: Float[np.ndarray, "_of"]) -> tuple[float, Float[np.ndarray, "_of"]]:
        scale = np.exp(weight[-1])
        moved = scale * x + span @ weight[:-1]
        log_p = log_softmax(moved, axis=1)
        gradient = (np.exp(log_p) - given) / len(x)
        constants = span.T @ gradient.sum(0) + 2 * RIDGE * weight[:-1]
        value = -(given * log_p).sum() / len(x) + RIDGE * np.square(weight[:-1]).sum()
        return float(value), np.append(constants, scale * (gradient * x).sum())

    # Not torch's solver: the first optimiser of a process imports torch's compiler, a second.
    start = np.zeros(span.shape[1] + 1)
    weight = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    solution = torch.from_numpy(weight).to(logits.dtype)
    return solution[-1].exp(), basis @ solution[:-1]


def least_convex(loss: Callable[[float], float], values: Collection[float], usual: float) -> float:
    """Return the value with the least loss, where the loss is convex; ``usual`` if none is lower.

    The loss is computed of about two values for each halving of their number. Log losses and
    squared errors are convex in a factor on the logits.

    Examples
    --------
    >>> least_convex(lambda x: (x - 3) ** 2, range(50), 1)
    3
    """
    ranked, cached = sorted(values), cache(loss)
    low, high = 0, len(ranked) - 1
    while low < high:
        middle = (low + high) // 2
        falls = cached(ranked[middle]) > cached(ranked[middle + 1])
        low, high = (middle + 1, high) if falls else (low, middle)
    return ranked[low] if cached(ranked[low]) < cached(usual) else usual
