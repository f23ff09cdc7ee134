"""SND074: a single column of a table that predicts the label."""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata, ttest_1samp

from sonde.core.paired_gains import gains_and_losses, group_means, sign_test
from sonde.core.random_state import kept_random_state
from sonde.findings.evidence.answers.answers import right_rows
from sonde.findings.evidence.answers.number_answers import number_rows
from sonde.findings.evidence.inputs.input_table import InputTable, read_table
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence
from sonde.findings.words.text import number, percent, plural, shortened
from sonde.stats.intervals import wilson

# Half of the groups fits every predictor and chooses the column, the other half judges.
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
    """Accuracy with which one column predicts the label of held-out rows.

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
    """Labelled rows: columns, labels, the half that is used to fit, and groups."""

    x: Float[np.ndarray, "row column"]
    y: np.ndarray
    fits: Bool[np.ndarray, "row"]
    order: Int[np.ndarray, "row"]
    group: Int[np.ndarray, "row"]
    is_number: bool


def telling_column(evidence: Evidence, table: InputTable, ratio: float) -> TellingColumn | str:
    """Return the single column that predicts the label best, or a reason if there is none.

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
    telling = TellingColumn(j, alone, without, np.nan, model, 1.0, len(own), rows.is_number)
    if not without > 0 or alone > ratio * without or alone > model + 0.01:
        return telling
    others = _of_others(rows, j, evidence.data.seed)[judged]
    p = _chance(others - own, rows.group[judged], rows.is_number)
    return TellingColumn(
        j, alone, without, float(others.mean()), model, p, len(own), rows.is_number
    )


def _labelled(evidence: Evidence, table: InputTable) -> _Rows | str:
    data = evidence.data
    if table.values.shape[1] < 2:
        return "the table has a single column"
    is_number = data.target is not None
    label = data.target if data.target is not None else data.label
    y = label.numpy()[table.order]
    has_target = np.isfinite(y) if data.target is not None else y >= 0
    keep = np.flatnonzero(has_target & np.isfinite(table.values).all(1))
    draw = np.random.default_rng(data.seed)
    most = min(ROWS, max(FEW_ROWS, NUMBERS // table.values.shape[1]))
    keep = np.sort(draw.permutation(keep)[:most])
    keys = [data.group_keys[i] for i in table.order[keep]]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    half = draw.permutation(len(numbers)) % 2 == 0
    group = np.array([numbers[key] for key in keys], dtype=np.int64)
    fits = half[group]
    y = y[keep]
    if min(fits.sum(), (~fits).sum()) < LEAST:
        return f"needs {2 * LEAST} rows with a label, in groups that can be halved"
    if len(np.unique(y[fits])) < 2:
        return "the data have no labels of two kinds"
    if is_number:
        y = (y - y[fits].mean()) / (y[fits].std() or 1.0)
    return _Rows(table.values[keep], y, fits, table.order[keep], group, is_number)


def _errors(rows: _Rows, x: Float[np.ndarray, "row"]) -> Float[np.ndarray, "row"]:
    """Return the errors of predicting each bin's commonest label, or its mean."""
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
    """Return the errors of the better predictor from all other columns, near copies excluded."""
    near = _correlates(rows.x, column) > COPY
    x = rows.x[:, ~near]
    if not x.shape[1]:
        return _errors(rows, np.zeros(len(rows.y)))
    spread = x[rows.fits].std(0)
    x = (x - x[rows.fits].mean(0)) / np.where(spread > 0, spread, 1)
    errors = []
    for model in _predictors(rows.is_number, seed):
        predicted = model.fit(x[rows.fits], rows.y[rows.fits]).predict(x)
        wrong = (predicted - rows.y) ** 2 if rows.is_number else (predicted != rows.y).astype(float)
        errors.append(wrong)
    return min(errors, key=lambda e: float(e[~rows.fits].mean()))


def _predictors(is_number: bool, seed: int) -> list[Any]:
    with kept_random_state():
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
        from sklearn.linear_model import Ridge

    if is_number:
        return [Ridge(1e-3), ExtraTreesRegressor(TREES, random_state=seed)]
    linear = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3)
    return [linear, ExtraTreesClassifier(TREES, random_state=seed)]


def _correlates(x: Float[np.ndarray, "row column"], column: int) -> Float[np.ndarray, "column"]:
    """Return each column's correlation with one column: Pearson or rank, the larger."""
    correlations = np.zeros(x.shape[1])
    for values in (x, rankdata(x, axis=0)):
        z = values - values.mean(0)
        norm = np.sqrt((z**2).sum(0))
        r = np.abs(z.T @ z[:, column]) / np.where(norm > 0, norm, 1) / (norm[column] or 1)
        correlations = np.maximum(correlations, r)
    return correlations


def _of_model(evidence: Evidence, rows: _Rows, judged: Bool[np.ndarray, "row"]) -> float:
    """Return the model's error on the sampled held-out rows; NaN if it is not known."""
    shared, wrong = shared_rows(evidence), dict[int, float]()
    if shared.order is None:
        return float("nan")
    if rows.is_number:
        numbers = number_rows(evidence)
        if isinstance(numbers, str):
            return float("nan")
        where, answers, truth = numbers
        spread = float(truth.var(correction=0))
        wrong = dict(zip(shared.order[where].tolist(), ((answers - truth) ** 2 / spread).tolist(),
                         strict=True))  # fmt: skip
    else:
        right = right_rows(evidence)
        if right is None:
            return float("nan")
        is_judged = torch.isfinite(right)
        pairs = zip(shared.order[is_judged].tolist(), right[is_judged].tolist(), strict=True)
        wrong = {example: 1.0 - hit for example, hit in pairs}
    errors = [wrong[e] for e in rows.order[judged].tolist() if e in wrong]
    return float(np.mean(errors)) if len(errors) >= FOR_MODEL else float("nan")


def _chance(
    lead: Float[np.ndarray, "row"], group: Int[np.ndarray, "row"], is_number: bool
) -> float:
    """Return the one-sided p-value of the lead, from the groups in which both predictors differ."""
    gain, member = torch.from_numpy(lead), torch.from_numpy(group)
    if is_number:
        test: Any = ttest_1samp(group_means(gain, member).numpy(), 0.0, alternative="greater")
        return float(test.pvalue)
    return sign_test(*gains_and_losses(gain, member))


@final
@dataclass(frozen=True)
class SND074(Rule):
    """Error of one column alone, against all other columns and against the model.

    Parameters
    ----------
    ratio : float, default=0.25
        Largest error with the column alone, as a share of the error without any column.
    lead : float, default=0.5
        Largest error with the column alone, as a share of the error with all the other columns.
    level : float, default=0.001
    """

    ratio: float = 0.25
    lead: float = 0.5
    level: float = 0.01

    title: ClassVar[str] = "One column alone predicts the label"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shortcut", "redundant columns")
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "A column that was filled in after the label was known (a date of discharge, a code of the "
        "diagnosis) makes the scores on this data high, but it is not available when the model "
        "is used."
    )
    fix: ClassVar[str] = (
        "Find out how the column is computed. If it is known only after the label, train without "
        "it."
    )
    how: ClassVar[str] = (
        "Before any forward pass, on at most 4,000 rows (1,000 of wide tables): every column "
        "alone predicts the label by the commonest label (the mean, if labels are numbers) in "
        "32 bins, or for each of at most 64 values, fitted on half of the groups; the best "
        "column is judged on the other half. Raised if its error is at most a quarter of the "
        "error without any column, at most half of the error with all other columns (the better "
        "of a linear predictor and 50 random trees; columns that correlate above 0.99 with it "
        "are left out; p below 0.01, sign test over rows), and at most 1 percentage point "
        "larger than the model's own error. A note if the other columns predict the label "
        "nearly as well; if the model's answers are not known, a note only if the other columns "
        "do not predict it better."
    )
    false_positives: ClassVar[str] = "A label that is defined by the column."
    plant: ClassVar[str] = "A column that is the label's number with a little noise."
    twin: ClassVar[str] = "The same table without that column."

    def check(self, evidence: Evidence) -> Check:
        """Judge the best single column on held-out rows."""
        table = evidence.get(read_table)
        if not isinstance(table, InputTable):
            return self.not_applicable(table or "the inputs are not rows of a table")
        telling = telling_column(evidence, table, self.ratio)
        if isinstance(telling, str):
            return self.not_applicable(telling)
        low, high = (None, None)
        value = 1.0 - telling.error
        if not telling.is_number:
            low, high = wilson(round(value * telling.n), telling.n)
        figure = Figure(
            "r2_of_one_column" if telling.is_number else "accuracy_of_one_column", value, low, high,
            null=1.0 - telling.usual, p=telling.p, n_rows=telling.n, n_groups=telling.n,
        )  # fmt: skip
        if np.isnan(telling.others) or telling.error > self.ratio * telling.usual:
            return self.clear(figure)
        leads = telling.error <= self.lead * telling.others and telling.p < self.level
        if not leads and np.isnan(telling.model) and telling.error > telling.others:
            return self.clear(figure, "all other columns together predict the label better")
        return self.raised_with(
            "warning" if leads else "note",
            _sentence(table, telling),
            figure,
            effect=min(1.0, max(0.0, telling.others - telling.error) / max(telling.usual, 1e-9)),
            next=read_command(evidence.sites[0].schema.key) if evidence.sites else None,
        )


def _sentence(table: InputTable, found: TellingColumn) -> str:
    name = shortened(table.names[found.column], 40)
    n = plural(found.n, "row")
    if found.is_number:
        others, own = number(1 - found.others), number(1 - found.error)
        text = (
            f"{name} alone predicts the label with R^2 {own} on {n} held out from the choice; all "
        )
        text += f"other columns together with {others}"
        more = "" if np.isnan(found.model) else f", the model with {number(1 - found.model)}"
        return sentence(f"{text}{more}.")
    text = (
        f"{name} alone predicts the label correctly in {percent(1 - found.error, 3)} of {n} held "
        f"out from the choice; all other columns together in {percent(1 - found.others, 3)}"
    )
    if not np.isnan(found.model):
        text += f", the model in {percent(1 - found.model, 3)}"
    return sentence(f"{text} (the commonest label: {percent(1 - found.usual)}).")
