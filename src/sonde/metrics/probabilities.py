"""Calibration of stated probabilities: expected calibration error and Brier score.

For probabilities of a model or a probe. P-values of ``sonde.Calibration`` are something else: they
promise a rate of false alarms, not how likely a row is unusual.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.tensors import as_tensor
from sonde.metrics._ranked import kinds, numbers
from sonde.metrics.intervals import LEVEL, RESAMPLES, Bootstrap, Metric, measured, members

SUM, ROUNDING = 1e-3, 1e-6


def expected_calibration_error(
    confidence: Any,
    right: Any,
    group: Any = None,
    *,
    bins: int = 15,
    binning: Literal["width", "mass"] = "width",
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the mean distance between stated confidence and accuracy, over rows.

    ``sum_b n_b / n |mean right - mean confidence|`` over bins of confidence. The estimate is never
    below 0 and grows with few rows in a bin: ``null`` is the average estimate if the confidence
    holds exactly, by the normal law in each bin, for independent rows.

    Parameters
    ----------
    confidence : array (row,)
        The stated probability of being right, in [0, 1].
    right : array (row,)
        1 where it was right, 0 where not.
    bins : int, default=15
        Number of bins of equal width between 0 and 1, at least 1.
    binning : {"width", "mass"}, default="width"
        Bins of equal width, as in the paper, or of about as many rows each; equal confidences
        share a bin.
    group : object, optional
        Document, person or trajectory of each row: groups are resampled whole.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).

    Examples
    --------
    >>> found = expected_calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0])
    >>> f"{found.value:.4f}"
    '0.1000'

    References
    ----------
    guo2017calibration
    """
    name = "expected_calibration_error"
    stated = _probabilities(name, confidence)
    hit = kinds(name, right, len(stated)).double()
    if bins < 1:
        raise InputError(f"{name}: expected at least 1 bin, got {bins}.")
    place = _bins(stated, bins, binning)
    n_bins = int(place.max()) + 1

    def figure(weight: Tensor) -> Tensor:
        gap = weight.new_zeros(len(weight), n_bins).index_add_(1, place, weight * (hit - stated))
        return gap.abs().sum(1) / weight.sum(1)

    spread = torch.zeros(n_bins, dtype=torch.float64).index_add_(0, place, stated * (1 - stated))
    null = float((spread * 2 / math.pi).sqrt().sum()) / len(stated)
    n_right = int(hit.sum())
    return measured(
        figure, members(group, len(stated)), Bootstrap(resamples, seed, level), null=null,
        range=(0.0, 1.0), direction="lower", n_positive=n_right, n_negative=len(hit) - n_right,
        conventions={"bins": bins, "binning": binning, "null": "confidence that holds exactly"},
    )  # fmt: skip


def brier_score(
    probability: Any,
    outcome: Any,
    group: Any = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the mean squared distance between stated probabilities and outcomes.

    ``mean (p - y)^2`` if a row has a single probability, ``mean sum_c (p_c - [y = c])^2`` if it has
    a probability for each class. ``null`` is the score of stating the shares of the outcomes for
    every row.

    Parameters
    ----------
    probability : array (row,) or (row, class)
        In [0, 1]; those of a row over its classes add to 1.
    outcome : array (row,)
        0 or 1, or the class from 0.
    group : object, optional
        Document, person or trajectory of each row: groups are resampled whole.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).

    Examples
    --------
    >>> round(brier_score([0.9, 0.2], [1, 0]).value, 6)
    0.025
    >>> round(brier_score([[0.9, 0.1], [0.2, 0.8]], [0, 1]).value, 6)
    0.05

    References
    ----------
    brier1950verification
    """
    wide = as_tensor("brier_score", probability, "probabilities")
    if wide.ndim == 2:
        stated = _shares(wide)
        happened = _one_hot(outcome, *stated.shape)
    else:
        stated = _probabilities("brier_score", probability)[:, None]
        happened = kinds("brier_score", outcome, len(stated)).double()[:, None]
    distance = (stated - happened).square().sum(1)
    share = happened.mean(0)

    def figure(weight: Tensor) -> Tensor:
        return (weight * distance).sum(1) / weight.sum(1)

    few = wide.ndim == 1
    return measured(
        figure, members(group, len(stated)), Bootstrap(resamples, seed, level),
        null=float((share * (1 - share)).sum()), range=(0.0, 1.0 if few else 2.0),
        direction="lower", n_positive=int(happened.sum()) if few else 0,
        n_negative=int((1 - happened).sum()) if few else 0,
        conventions={"classes": 2 if few else stated.shape[1]},
    )  # fmt: skip


def _probabilities(name: str, values: Any) -> Float[Tensor, "row"]:
    probabilities = numbers(name, values, "probabilities")
    outside = probabilities[(probabilities < -ROUNDING) | (probabilities > 1 + ROUNDING)]
    if len(outside):
        raise InputError(
            f"{name}: expected probabilities in [0, 1], got {float(outside[0]):.9g}. Take the "
            "softmax or the sigmoid of logits."
        )
    return probabilities.clamp(0.0, 1.0)


def _shares(wide: Tensor) -> Float[Tensor, "row class"]:
    """Return the class probabilities, after checking that they sum to 1."""
    stated = _probabilities("brier_score", wide.flatten()).reshape(wide.shape)
    off = (stated.sum(1) - 1).abs().max()
    if float(off) > SUM:
        raise InputError(
            f"brier_score: expected probabilities that add to 1 over classes, got a sum off by "
            f"{float(off):.3g}. Take the softmax of logits."
        )
    return stated


def _one_hot(outcome: Any, n_rows: int, n_classes: int) -> Float[Tensor, "row class"]:
    classes = as_tensor("brier_score", outcome, "outcomes").detach().cpu().flatten()
    whole = classes.double() == classes.double().round()
    if len(classes) != n_rows or not bool((whole & (classes >= 0) & (classes < n_classes)).all()):
        raise InputError(
            f"brier_score: expected a class from 0 to {n_classes - 1} for each of {n_rows} rows, "
            f"got {len(classes)} values from {classes.min().item():g} to {classes.max().item():g}."
        )
    return torch.nn.functional.one_hot(classes.long(), n_classes).double()


def _bins(
    stated: Float[Tensor, "row"], bins: int, binning: Literal["width", "mass"]
) -> Int[Tensor, "row"]:
    """Return each row's bin; a bin includes its upper end."""
    if binning == "width":
        return torch.bucketize(stated, torch.arange(1, bins, dtype=torch.float64) / bins)
    ranks = torch.searchsorted(stated.sort().values, stated.contiguous())
    return ranks * bins // len(stated)
