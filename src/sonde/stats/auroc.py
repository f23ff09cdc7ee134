"""How well scores separate two sets of rows, with a standard error."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sonde.core.errors import InputError


@dataclass(frozen=True)
class AUROC:
    """Probability that a positive row scores above a negative one, ties counted half.

    ``se`` is DeLong's standard error; NaN with one row on a side.

    Parameters
    ----------
    value : float
        Area under the curve, in [0, 1]; 0.5 = no separation.
    se : float
        Standard error of the area.
    n_negative : int
        Number of negative rows.
    n_positive : int
        Number of positive rows.
    """

    value: float
    se: float
    n_negative: int
    n_positive: int


def midranks(values: Shaped[Tensor, "row"]) -> Float[Tensor, "row"]:
    """Return ranks from 1, with equal values sharing their mean rank.

    Parameters
    ----------
    values : Shaped[Tensor, "row"]
        Values to rank.

    Examples
    --------
    >>> midranks(torch.tensor([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, index, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[index]


def auroc(negative: Shaped[Tensor, "negative"], positive: Shaped[Tensor, "positive"]) -> AUROC:
    """Return the area under the ROC curve of two sets of scores, including infinite ones.

    Parameters
    ----------
    negative : Shaped[Tensor, "row"]
        Scores of the rows that should score low.
    positive : Shaped[Tensor, "row2"]
        Scores of the rows that should score high.

    References
    ----------
    delong1988comparing
    """
    n, m = len(negative), len(positive)
    if n == 0 or m == 0:
        raise InputError(
            f"auroc: expected at least one score in each of the two samples, got {n} and {m}."
        )
    scores = torch.cat([negative.double(), positive.double()])
    if bool(torch.isnan(scores).any()):
        raise InputError("auroc: expected scores without NaN. Score non-finite rows as +inf.")
    ranks = midranks(scores)
    above = (ranks[n:] - midranks(scores[n:])) / n
    below = 1 - (ranks[:n] - midranks(scores[:n])) / m
    value = float(above.mean())
    se = float("nan")
    if n > 1 and m > 1:
        se = float((above.var() / m + below.var() / n).sqrt())
    return AUROC(value, se, n, m)
