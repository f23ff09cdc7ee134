"""Test whether scores predict wrong answers: a table of scores against a column of errors.

For steps and pixels: ``known_steps``, ``known_pixels``.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sonde.core.errors import InputError
from sonde.metrics import auroc, auroc_within, prediction_rejection
from sonde.run.scoring.evaluate import RESAMPLES, ends
from sonde.run.scoring.known import KnownItems
from sonde.run.scoring.tables import scores_of
from sonde.run.scoring.trust import Candidate, trust_of

MOST_VALUES: Final = 64


def evaluate_errors(
    scored: pa.Table,
    data: Any,
    column: str,
    *,
    group_column: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return how well each detector at each site predicts wrong answers.

    Parameters
    ----------
    scored : pyarrow.Table
        As ``sonde.score`` returns it, a line for each item.
    data : str, path or iterable
        What was scored.
    column : str
        Of the data: how wrong each answer is, 0 = right and 1 = wrong, or any number of at least 0.
        Items without a number, or with -1, are left out.
    group_column : str, optional
        Column of the groups, which are resampled whole and within which ``within`` compares; by
        default ``group`` if the data has it.
    resamples, seed
        As in ``auroc``.

    Returns
    -------
    list of dict
        For each instrument and site ``n left_out groups``, ``prr`` with ``_low`` and ``_high``;
        if errors are 0 or 1, also ``auroc``, and ``within`` if a group holds both.

    Raises
    ------
    InputError
        If errors are no numbers or all the same, or an item has several lines.
    """
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    rows = []
    for one, wrong, items in _judged(scored, data, column, group_column):
        scores, group = one.scores, list(one.group)
        row = {"instrument": one.key[0], "site": one.key[1], "n": len(group)}
        row |= {"groups": len(set(group)), "left_out": len(items) - len(group)}
        row |= ends("prr", prediction_rejection(scores, -wrong, group, **options))
        row |= _tells(scores, wrong, group, options)
        rows.append(row)
    return rows


def trust_errors(
    scored: pa.Table,
    data: Any,
    column: str,
    *,
    group_column: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Return the most reliable detector and site for wrong answers, or none.

    Parameters are as in ``evaluate_errors``, the result is as in ``trust_of``. None if an error is
    neither 0 nor 1.
    """
    judged = list(_judged(scored, data, column, group_column))
    if not all(set(wrong.tolist()) <= {0.0, 1.0} for _, wrong, _ in judged):
        return None
    return trust_of([one for one, _, _ in judged], resamples=resamples, seed=seed)


def evaluate_errors_by(
    scored: pa.Table,
    data: Any,
    column: str,
    by: str,
    *,
    group_column: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Evaluate each detector and site separately for each value of another column.

    Parameters
    ----------
    by : str
        The column of the data; items without a value in it are left out.
    scored, data, column, group_column, resamples, seed
        As in ``evaluate_errors``.

    Returns
    -------
    list of dict
        For each value, instrument and site ``value n groups``, ``wrong`` (the mean of the errors),
        and ``auroc`` with ``_low`` and ``_high``; None unless errors are 0 and 1, and both occur.

    Raises
    ------
    InputError
        If the column has more than 64 values.
    """
    values = {i: str(v) for i, v in KnownItems.of(data).column(by).items()}
    if len(names := sorted(set(values.values()))) > MOST_VALUES:
        raise InputError(
            f"evaluate: expected at most {MOST_VALUES} values in column {by!r}, got "
            f"{len(names)}. Name a column with few distinct values."
        )
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    judged = list(_judged(scored, data, column, group_column))
    rows = []
    for name in names:
        for one, wrong, items in judged:
            here = np.array([values.get(i) == name for i in items if i is not None])
            if not here.any():
                continue
            errors, group = wrong[here], [g for g, h in zip(one.group, here, strict=True) if h]
            row = {"value": name, "instrument": one.key[0], "site": one.key[1], "n": len(errors)}
            row |= {"groups": len(set(group)), "wrong": float(errors.mean())}
            row |= dict.fromkeys(("auroc", "auroc_low", "auroc_high"))
            if set(errors.tolist()) == {0.0, 1.0}:
                row |= ends("auroc", auroc(one.scores[here], errors, group, **options))
            rows.append(row)
    return rows


def _judged(
    scored: pa.Table, data: Any, column: str, group_column: str | None
) -> Iterator[tuple[Candidate, np.ndarray, list[int | None]]]:
    """Yield the scores of each detector and site, the errors of the answers, and the items.

    An item whose error is unknown is given as None; it has no score and no error.
    """
    items = KnownItems.of(data)
    errors = {i: _error(v, i, column) for i, v in items.column(column).items()}
    errors = {i: v for i, v in errors.items() if v >= 0}
    groups = items.groups(group_column)
    for (instrument, site), part, numbers in items.parts(scored):
        _require_once(numbers, instrument, site)
        kept = [k for k, i in enumerate(numbers) if i in errors]
        wrong = np.array([errors[numbers[k]] for k in kept])
        if len(set(wrong.tolist())) < 2:
            raise InputError(
                f"evaluate: expected both correct and wrong answers in column {column!r}, got "
                f"{len(kept):,} scored items with {'no' if not kept else 'the same'} value."
            )
        group = [groups[numbers[k]] for k in kept]
        one = Candidate((instrument, site), scores_of(part)[kept], wrong > 0, group)
        yield one, wrong, [i if i in errors else None for i in numbers]


def _error(value: Any, item: int, column: str) -> float:
    try:
        error = float(value)
    except (TypeError, ValueError):
        error = np.nan
    if not (np.isfinite(error) and (error >= 0 or error == -1)):
        raise InputError(
            f"evaluate: expected in column {column!r} the error of each answer, a number of "
            f"at least 0 (0 = correct, 1 = wrong), got {value!r:.40} for item {item}."
        )
    return error


def _require_once(numbers: list[int], instrument: str, site: str) -> None:
    if len(set(numbers)) < len(numbers):
        again = next(i for i in numbers if numbers.count(i) > 1)
        raise InputError(
            f"evaluate: expected one line for each item, got {numbers.count(again)} for item "
            f"{again} of {instrument} at {site}. Score with --reduction max, and long texts with "
            "--long truncate."
        )


def _tells(
    scores: np.ndarray, wrong: np.ndarray, group: list[str], options: dict[str, Any]
) -> dict[str, Any]:
    """Return AUROC over all answers and within groups; None unless all errors are 0 or 1."""
    row: dict[str, Any] = dict.fromkeys(("auroc", "auroc_low", "auroc_high"))
    row |= dict.fromkeys(("within", "within_low", "within_high"))
    if not set(wrong.tolist()) <= {0.0, 1.0}:
        return row
    row |= ends("auroc", auroc(scores, wrong, group, **options))
    kinds = {(g, w) for g, w in zip(group, wrong.tolist(), strict=True)}
    if len(kinds) > len({g for g, _ in kinds}):
        row |= ends("within", auroc_within(scores, wrong, group, **options))
    return row
