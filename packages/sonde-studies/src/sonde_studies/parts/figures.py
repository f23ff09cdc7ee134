"""Wording and pictures of answers: gains and AUROCs as fields, long tables, axes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]
from scipy.stats import rankdata, spearmanr  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde import InputError
from sonde.core import ChartAxis, grouped_error, histogram, sign_test, widen_error
from sonde.metrics import Metric
from sonde_studies.parts.rows import Rows

ACCURACY = ChartAxis("accuracy", share=True)
ZERO_ACCURACY = ChartAxis("accuracy", share=True, zero=True)
WHOLE_ACCURACY = ChartAxis("accuracy", share=True, low=0.0, high=1.0)
SHARE = ChartAxis("share", share=True, zero=True)
AUROC = ChartAxis("AUROC", low=0.0, high=1.0)
BINS, RESAMPLES, EXACT = 24, 500, 7
ONE_SIDED = 0.0228
"""What a normal law has above two standard errors."""


def names(column: str) -> ChartAxis:
    """Return a categorical axis without a title."""
    return ChartAxis(column, title="")


def most_frequent(label: Any) -> float:
    """Return the frequency of the most frequent class."""
    return float(np.unique(label, return_counts=True)[1].max() / len(label))


def error_of(right: Any, group: Any = None) -> float:
    """Return the standard error of a mean over independent rows, or over groups of rows.

    It is widened by Student's t if they are few, and infinite for a single one.
    """
    values = np.asarray(right, dtype=float)
    member = np.arange(len(values)) if group is None else np.unique(group, return_inverse=True)[1]
    n_groups = len(np.unique(member))
    if n_groups < 2:
        return float("inf")
    sums = torch.from_numpy(np.bincount(member, values - values.mean()))
    return float(grouped_error(sums, torch.from_numpy(np.bincount(member)))) / len(values)


def resampled_error(gain: Float[Tensor, "row"], seed: int) -> float:
    """Return the standard error of a mean over rows, by resampling; widened if they are few."""
    n, draw = len(gain), torch.Generator().manual_seed(seed)
    if n < 2:
        return float("inf")
    chosen = torch.randint(n, (RESAMPLES, n), generator=draw)
    return widen_error(float(gain[chosen].mean(1).std()) * (n / (n - 1)) ** 0.5, n)


def is_sure(gain: Any, correlation: float = 0.0) -> bool:
    """Return whether a mean gain over rows exceeds two standard errors, one-sided 2.3 %.

    Where all gains are -1, 0 or 1, as of right and wrong answers, an exact sign test at this level
    decides: four rows that gain and none that loses exceed two errors, at a p-value of .06.

    Parameters
    ----------
    gain : array
        Gain of each row.
    correlation : float, default=0.0
        Of the mean gains of two halves, from ``gain_of_best``: it widens the error.
    """
    values, wider = np.asarray(gain, dtype=float), (1 + correlation) ** 0.5
    if not np.isin(values, (-1.0, 0.0, 1.0)).all():
        return float(values.mean()) > 2 * wider * error_of(values)
    level = ONE_SIDED if correlation == 0 else float(ndtr(-2 * wider))
    return sign_test(int((values > 0).sum()), int((values < 0).sum())) < level


def compared(said: Mapping[str, Mapping[Any, Any]], truth: Any) -> tuple[dict[str, Any], ...]:
    """Return the correct rows of each arm in each case, and the accuracies."""
    right = {arm: {case: v == truth for case, v in own.items()} for arm, own in said.items()}
    score = {arm: {case: float(r.mean()) for case, r in c.items()} for arm, c in right.items()}
    return right, score


def gained(gain: Any, correlation: float = 0.0) -> dict[str, Any]:
    """Return an answer's fields for a mean gain over rows, whose halves may be correlated."""
    return {
        "value": float(np.mean(gain)),
        "se": error_of(gain) * (1 + correlation) ** 0.5,
        "null": 0.0,
        "n": len(gain),
        "direction": "higher",
    }


def told(found: Metric) -> dict[str, Any]:
    """Return an answer's fields for an AUROC."""
    value, n = float(found.value), found.n
    shape = {"range": (0.0, 1.0), "direction": "higher"}
    return {"value": value, "se": found.se, "null": 0.5, "n": n, **shape}


def auroc_rows(found: Mapping[str, Metric], name: str = "what") -> Rows:
    """Return a table row for each AUROC, with its interval."""
    return [
        {name: key, "AUROC": float(m.value), "low": m.low, "high": m.high}
        for key, m in found.items()
    ]


def rank_agreement(x: Any, y: Any, least: int = 3) -> tuple[float, float]:
    """Return Spearman's correlation and its p-value; 0 and 1 for constant or few values.

    Of up to ``EXACT`` values p counts all orders; scipy's p of two equal orders of four is 0.
    """
    if len(x) < least or min(len(set(np.asarray(side).tolist())) for side in (x, y)) < 2:
        return 0.0, 1.0
    found: Any = spearmanr(np.asarray(x), np.asarray(y))
    rho = float(found.statistic)
    if len(x) > EXACT:
        return rho, float(found.pvalue)
    first, second = (rankdata(side) - (len(x) + 1) / 2 for side in (x, y))
    orders = second[np.array([*permutations(range(len(y)))])]
    own = abs(float(first @ second)) - 1e-9
    return rho, float(np.mean(np.abs(orders @ first) >= own))


def melted(
    rows: Sequence[Mapping[str, Any]], x: str, value: str, by: str, columns: Mapping[str, str]
) -> Rows:
    """Return several columns of a table as one long column, for a picture.

    Parameters
    ----------
    rows : sequence of mapping
    x : str
        The column that is kept.
    value, by : str
        Names of the new columns: of the numbers, and of what they are.
    columns : mapping of str to str
        What each column is called in the picture. Cells of None are left out.
    """
    return [
        {x: row[x], value: row[column], by: name}
        for row in rows
        for column, name in columns.items()
        if row.get(column) is not None
    ]


def unfolded(
    table: Mapping[str, Mapping[Any, float]], rows: str, columns: str, value: str = "accuracy"
) -> Rows:
    """Return a table with two keys as one row per number."""
    return [{rows: a, columns: b, value: v} for a, own in table.items() for b, v in own.items()]


def auroc_effects(score: Any, is_positive: Any) -> Any:
    """Return each row's influence on an AUROC; the squares sum to its variance."""
    positive, score = np.asarray(is_positive, bool), np.asarray(score)
    effects = np.zeros(len(score))
    for own, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(score[~own])
        below = [np.searchsorted(others, score[own], side) for side in ("left", "right")]
        rate = sign * (below[0] + below[1]) / (2 * len(others))
        effects[own] = (rate - rate.mean()) / len(rate)
    return effects


def low_bar(usual: Float[Tensor, "row"], share: float, none: float) -> float:
    """Return a conformal bar that at most a given fraction of new rows fall below.

    Parameters
    ----------
    usual : Float[Tensor, "row"]
    share : float
    none : float
        What is returned where there are too few rows for that share.
    """
    rank = int(np.floor(share * (len(usual) + 1)))
    return float(usual.sort().values[rank - 1]) if rank else none


def high_bar(usual: Sequence[float], share: float) -> float:
    """Return a bar that a fraction of new normal values exceeds, by Student's t.

    Parameters
    ----------
    usual : sequence of float
        Independent values; the bar is infinite for fewer than three.
    share : float
    """
    n = len(usual)
    if n < 3:
        return float("inf")
    spread = float(np.std(usual, ddof=1)) * (1 + 1 / n) ** 0.5
    return float(np.mean(usual) + stdtrit(n - 1, 1 - share) * spread)


def two_histograms(
    title: str, parts: Mapping[str, Float[Tensor, "_row"]], edges: Any, x: str, limit: float
) -> dict[str, Any]:
    """Return a histogram of two groups between edges, with a line at the limit."""
    rows = [
        {"low": a, "high": b, "share": float(((v >= a) & (v < b)).double().mean()), "rows": name}
        for name, v in parts.items()
        for a, b in pairwise(np.asarray(edges).tolist())
    ]
    low, share = ChartAxis("low", title=x), ChartAxis("share", share=True)
    return histogram(title, rows, low, "high", share, by="rows", limit=limit)


def check_usual(accuracy: float, label: Any) -> tuple[str, ...]:
    """Return a warning if no model is better than the most frequent class."""
    usual = most_frequent(label)
    if accuracy > usual:
        return ()
    return (
        f"Neither model is better than always naming the most frequent class ({usual:.3f}). Look "
        "at the labels: do their numbers mean the same as the models' outputs?",
    )


def check_order(recipe: str, accuracy: float, names: Sequence[str]) -> None:
    """Refuse labels that seem to be numbered differently from the model's outputs.

    Raises
    ------
    InputError
        If accuracy is below half of chance.
    """
    if accuracy < 0.5 / max(len(names), 1):
        told = ", ".join(f"{k} is {name}" for k, name in enumerate(names))
        raise InputError(
            f"{recipe}: expected labels that are the numbers of the model's outputs, got an "
            f"accuracy of {accuracy:.3f}, far below chance. Here {told}: name the classes in the "
            "order of the outputs: classes."
        )
