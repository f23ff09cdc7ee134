"""A single column of a table that gives the label better than all the other columns together.

Half of the groups fits every predictor and chooses the column, the other half judges.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binom, rankdata, ttest_1samp
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.linear_model import Ridge

from sonde.findings._number_answers import number_rows
from sonde.findings._shared import shared_rows
from sonde.findings.answers import right_rows
from sonde.findings.evidence import Evidence
from sonde.findings.input_table import InputTable

ROWS: Final = 4_000
FEW_ROWS: Final = 1_000
NUMBERS: Final = 1_000_000
LEAST: Final = 50
BINS: Final = 32
CATEGORIES: Final = 64
COPY: Final = 0.99
TREES: Final = 50
FOR_MODEL: Final = 30


@dataclass(frozen=True)
class TellingColumn:
    """How well one column gives the label on rows that did not choose it.

    Errors are shares of wrong rows; for a label of numbers, squared errors over the label's
    variance.

    Parameters
    ----------
    column : int
    error, usual : float
        With this column alone, and without any column.
    others : float
        With all other columns, less those that correlate with this one above 0.99, by the better of
        a linear predictor and 50 random trees; NaN if the column alone is no candidate.
    model : float
        Of the model's own answers to these rows; NaN if they are not known.
    p : float
        Chance of such a lead over the other columns without a true one; 1 if not tried.
    n : int
        Rows that judge.
    is_number : bool
        Whether the label is a number.
    """

    column: int
    error: float
    usual: float
    others: float
    model: float
    p: float
    n: int
    is_number: bool


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows with a label: columns, label, and which half chooses."""

    x: Float[np.ndarray, "row column"]
    y: np.ndarray
    fits: Bool[np.ndarray, "row"]
    order: Int[np.ndarray, "row"]
    is_number: bool


def telling_column(evidence: Evidence, table: InputTable, ratio: float) -> TellingColumn | str:
    """Return the column that gives the label best on the rows that choose, or why there is none.

    The other columns are asked only if the column's error is at most ``ratio`` of the error
    without any column, and no larger than the model's by more than 0.01.
    """
    rows = _labelled(evidence, table)
    if isinstance(rows, str):
        return rows
    errors = [_errors(rows, rows.x[:, j]) for j in range(rows.x.shape[1])]
    j = int(np.argmin([e[rows.fits].mean() for e in errors]))
    judged = ~rows.fits
    own, usual = errors[j][judged], _errors(rows, np.zeros(len(rows.y)))[judged]
    model = _of_model(evidence, rows, judged)
    alone, without = float(own.mean()), float(usual.mean())
    said = TellingColumn(j, alone, without, np.nan, model, 1.0, len(own), rows.is_number)
    if not without > 0 or alone > ratio * without or alone > model + 0.01:
        return said
    others = _of_others(rows, j, evidence.data.seed)[judged]
    p = _chance(own, others, rows.is_number)
    return TellingColumn(
        j, alone, without, float(others.mean()), model, p, len(own), rows.is_number
    )


def _labelled(evidence: Evidence, table: InputTable) -> _Rows | str:
    data = evidence.data
    if table.values.shape[1] < 2:
        return "there is a single column"
    is_number = data.target is not None
    label = data.target if data.target is not None else data.label
    y = label.numpy()[table.order]
    known = np.isfinite(y) if data.target is not None else y >= 0
    keep = np.flatnonzero(known & np.isfinite(table.values).all(1))
    draw = np.random.default_rng(data.seed)
    most = min(ROWS, max(FEW_ROWS, NUMBERS // table.values.shape[1]))
    keep = np.sort(draw.permutation(keep)[:most])
    keys = [data.group_keys[i] for i in table.order[keep]]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    half = draw.permutation(len(numbers)) % 2 == 0
    fits = np.array([half[numbers[key]] for key in keys], dtype=bool)
    y = y[keep]
    if min(fits.sum(), (~fits).sum()) < LEAST:
        return f"needs {2 * LEAST} rows with a label, in groups that can be halved"
    if len(np.unique(y[fits])) < 2:
        return "the data have no labels of two kinds"
    if is_number:
        y = (y - y[fits].mean()) / (y[fits].std() or 1.0)
    return _Rows(table.values[keep], y, fits, table.order[keep], is_number)


def _errors(rows: _Rows, x: Float[np.ndarray, "row"]) -> Float[np.ndarray, "row"]:
    """Return the errors of the commonest label, or of the mean, of the bin that a row falls in."""
    values = np.unique(x[rows.fits])
    edges = (values[1:] + values[:-1]) / 2
    if len(values) > CATEGORIES:
        edges = np.unique(np.quantile(x[rows.fits], np.arange(1, BINS) / BINS))
    at = np.searchsorted(edges, x)
    if rows.is_number:
        return (_bin_means(at, rows, len(edges) + 1) - rows.y) ** 2
    names, y = np.unique(rows.y, return_inverse=True)
    counts = np.zeros((len(edges) + 1, len(names)))
    np.add.at(counts, (at[rows.fits], y[rows.fits]), 1.0)
    counts += 1e-3 * counts.sum(0) / counts.sum()  # an empty bin gets the commonest label
    return (counts.argmax(1)[at] != y).astype(float)


def _bin_means(at: Int[np.ndarray, "row"], rows: _Rows, n: int) -> Float[np.ndarray, "row"]:
    sums = np.bincount(at[rows.fits], rows.y[rows.fits], n)
    counts = np.bincount(at[rows.fits], minlength=n)
    return (sums / np.maximum(counts, 1))[at]


def _of_others(rows: _Rows, column: int, seed: int) -> Float[np.ndarray, "row"]:
    """Return the errors of the better predictor by all columns but this one and its near copies."""
    near = _correlates(rows.x, column) > COPY
    x = rows.x[:, ~near]
    if not x.shape[1]:
        return _errors(rows, np.zeros(len(rows.y)))
    spread = x[rows.fits].std(0)
    x = (x - x[rows.fits].mean(0)) / np.where(spread > 0, spread, 1)
    models: list[Any] = (
        [Ridge(1e-3), ExtraTreesRegressor(TREES, random_state=seed)]
        if rows.is_number
        else [_linear(), ExtraTreesClassifier(TREES, random_state=seed)]
    )
    found = []
    for model in models:
        said = model.fit(x[rows.fits], rows.y[rows.fits]).predict(x)
        wrong = (said - rows.y) ** 2 if rows.is_number else (said != rows.y).astype(float)
        found.append(wrong)
    return min(found, key=lambda e: float(e[~rows.fits].mean()))


def _linear() -> LinearDiscriminantAnalysis:
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3)


def _correlates(x: Float[np.ndarray, "row column"], column: int) -> Float[np.ndarray, "column"]:
    """Return how much each column correlates with one column, by values or by ranks."""
    found = np.zeros(x.shape[1])
    for values in (x, rankdata(x, axis=0)):
        z = values - values.mean(0)
        norm = np.sqrt((z**2).sum(0))
        r = np.abs(z.T @ z[:, column]) / np.where(norm > 0, norm, 1) / (norm[column] or 1)
        found = np.maximum(found, r)
    return found


def _of_model(evidence: Evidence, rows: _Rows, judged: Bool[np.ndarray, "row"]) -> float:
    """Return the model's error on the judging rows that were sampled; NaN if it is not known."""
    shared, wrong = shared_rows(evidence), dict[int, float]()
    if shared.order is None:
        return float("nan")
    if rows.is_number:
        numbers = number_rows(evidence)
        if isinstance(numbers, str):
            return float("nan")
        where, said, truth = numbers
        spread = float(truth.var(correction=0))
        wrong = dict(zip(shared.order[where].tolist(), ((said - truth) ** 2 / spread).tolist(),
                         strict=True))  # fmt: skip
    else:
        right = right_rows(evidence)
        if right is None:
            return float("nan")
        known = torch.isfinite(right)
        pairs = zip(shared.order[known].tolist(), right[known].tolist(), strict=True)
        wrong = {example: 1.0 - hit for example, hit in pairs}
    found = [wrong[e] for e in rows.order[judged].tolist() if e in wrong]
    return float(np.mean(found)) if len(found) >= FOR_MODEL else float("nan")


def _chance(own: np.ndarray, others: np.ndarray, is_number: bool) -> float:
    """Return the one-sided p-value of the lead, by the rows on which both differ."""
    if is_number:
        found: Any = ttest_1samp(others - own, 0.0, alternative="greater")
        return float(found.pvalue)
    ahead, behind = int((others > own).sum()), int((others < own).sum())
    return float(binom.sf(ahead - 1, ahead + behind, 0.5)) if ahead + behind else 1.0
