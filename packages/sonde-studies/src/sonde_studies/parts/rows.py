"""Rows of a user's data: required columns, classes, and the test split."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from sonde import InputError
from sonde.data import rows_of

Rows = list[dict[str, Any]]
Values = np.ndarray[Any, np.dtype[Any]]


def rows_with(
    recipe: str, data: Any, columns: Sequence[str], least: int, limit: int | None = None
) -> Rows:
    """Return the rows of the data.

    Raises
    ------
    InputError
        If there are fewer than ``least``, or a row lacks a column, or has no value in it.
    """
    rows = rows_of(data, limit)
    if len(rows) < least:
        raise InputError(f"{recipe}: expected {least} or more rows, got {len(rows)}. Pass more.")
    missing = [name for name in columns if any(name not in row for row in rows)]
    if missing:
        raise InputError(
            f"{recipe}: expected the columns {', '.join(columns)} in every row, got rows without "
            f"{', '.join(missing)}. The first row has {', '.join(map(str, rows[0]))}."
        )
    for name in columns:
        unfilled = [i for i, row in enumerate(rows) if not _is_filled(row[name])]
        if unfilled:
            raise InputError(
                f"{recipe}: expected finite values in the column {name!r} of every row, got none "
                f"or NaN in {len(unfilled)} of {len(rows)} rows, first in row {unfilled[0]} "
                "(counted from 0). Fill them, or leave these rows out."
            )
    return rows


def _is_filled(value: Any) -> bool:
    """Return whether a value is there, and finite where it is of numbers."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy() if value.is_floating_point() else 0
    if isinstance(value, list | tuple):
        with suppress(ValueError, TypeError):
            value = np.array(value)
    if isinstance(value, float | np.floating | np.ndarray):
        found = np.asarray(value)
        return found.dtype.kind != "f" or bool(np.isfinite(found).all())
    return value is not None


def check_states(recipe: str, states: Mapping[str, Any]) -> None:
    """Raise unless all states are finite.

    Parameters
    ----------
    recipe : str
        Named in errors.
    states : mapping of str to array (row, dim)
        By name, e.g. of their encoder.

    Raises
    ------
    InputError
        If some are NaN or infinite, with the first row.
    """
    for name, x in states.items():
        bad = np.flatnonzero(~np.isfinite(x).all(1))
        if len(bad):
            raise InputError(
                f"{recipe}: expected finite states, got NaN or infinity from {name} in {len(bad)} "
                f"of {len(x)} rows, first in row {bad[0]} (counted from 0). Look at this row."
            )


def classes_of(recipe: str, rows: Rows, column: str, least: int, each: int = 2) -> Values:
    """Return the class of each row.

    Raises
    ------
    InputError
        If there are fewer rows than ``least``, or than ``each`` of a class, or a single class, or a
        row lacks the column.
    """
    rows_with(recipe, rows, [column], least)
    label = np.array([str(row[column]) for row in rows])
    check_classes(recipe, label, least, each=each)
    return label


def check_two(recipe: str, what: str, names: Sequence[str]) -> None:
    """Raise unless two column names are given, e.g. of two views.

    Raises
    ------
    InputError
        If there are fewer or more, or one of them twice.
    """
    if len(names) != 2:
        raise InputError(f"{recipe}: expected two {what}, got {len(names)}. Name: {what}.")
    if names[0] == names[1]:
        raise InputError(
            f"{recipe}: expected two different {what}, got {names[0]!r} twice. Name another."
        )


def check_classes(
    recipe: str,
    label: Any,
    least: int,
    kinds: int = 2,
    each: int = 2,
    groups: Any = None,
) -> None:
    """Raise if there are too few labelled rows, classes, or rows (or groups) of a class.

    Raises
    ------
    InputError
        If so, naming the first reason.
    """
    names = np.unique(label)
    owners = np.arange(len(label)) if groups is None else np.asarray(groups)
    held = {str(name): len(np.unique(owners[label == name])) for name in names}
    few = {name: n for name, n in held.items() if n < each}
    if without := int((label < 0).sum()) if label.dtype.kind in "if" else 0:
        advice = "Leave these rows out" if without < len(label) else "Name the column of labels"
        raise InputError(
            f"{recipe}: expected a label for every row, got {without} of {len(label)} rows without "
            f"one, or with a negative one. {advice}."
        )
    if len(label) < least:
        raise InputError(
            f"{recipe}: expected {least} or more labelled rows, got {len(label)}. Give more rows."
        )
    if len(names) < kinds:
        raise InputError(
            f"{recipe}: expected {kinds} or more classes, got {', '.join(held) or 'none'}. Check "
            "that the column of labels is the right one."
        )
    if few:
        what = "rows" if groups is None else "groups"
        raise InputError(
            f"{recipe}: expected {each} or more {what} of every class, got {few}. Give more "
            f"{what} of these classes, or leave the classes out."
        )


def apart(
    label: Any, share: float, seed: int, ordered: bool = True, *, owner: Values
) -> tuple[Values, Values]:
    """Return the indices of training and test rows, with all classes in both.

    No group has rows on both sides. One random row of each other group is a test row, so that test
    rows are independent and stand for new groups.

    Parameters
    ----------
    label : array (row,)
    share : float
        Fraction of the groups that are tested.
    seed : int
    ordered : bool, default=True
        Return the rows in ascending order.
    owner : array (row,)
        Group of each row.

    Raises
    ------
    InputError
        If a class has rows of fewer than two groups.
    """
    from sklearn.model_selection import train_test_split  # pyright: ignore

    rows = one_of_each(owner, seed)
    names, counts = np.unique(label[rows], return_counts=True)
    if len(rows) < 2 or counts.min() < 2:
        held = dict(zip(map(str, names), counts.tolist(), strict=True))
        raise InputError(
            "split of groups: expected two or more groups for every class, where one row stands "
            f"for each group, got {held} (groups: {len(rows)}, rows: {len(owner)}). Give rows of "
            "more groups, or leave the column of groups out if the rows are independent."
        )
    parts: Any = train_test_split(rows, test_size=share, stratify=label[rows], random_state=seed)
    kept, held = (np.sort(part) if ordered else np.asarray(part) for part in parts)
    if len(rows) < len(owner):
        kept = np.flatnonzero(np.isin(owner, owner[kept]))
    return kept, held


def one_of_each(owner: Values, seed: int) -> Values:
    """Return the index of one random row of each group, in ascending order."""
    order = np.random.default_rng(seed).permutation(len(owner))
    return np.sort(order[np.unique(owner[order], return_index=True)[1]])
