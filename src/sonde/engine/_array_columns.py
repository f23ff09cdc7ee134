"""Checks of columns given as plain arrays, which become tensors of one length."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sonde.core._kinds import is_array
from sonde.core.columns import COLUMNS
from sonde.core.errors import ShapeError, SondeWarning
from sonde.core.tensors import as_tensor
from sonde.core.wording import plural


def matrix(x: Any, name: str) -> Tensor:
    """Return rows as a floating (row, dim) tensor; a vector becomes rows of width 1."""
    tensor = as_tensor("Stream.of", x, name, ShapeError)
    if tensor.ndim == 1:
        tensor = tensor[:, None]
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise ShapeError(
            f"Stream.of: expected {name} as a (row, dim) array, got shape {tuple(tensor.shape)}."
        )
    if not tensor.is_floating_point():
        tensor = tensor.double()
    return tensor.detach()


def matrix_of_rows(x: Any, n: int, name: str) -> Tensor:
    """Return a matrix after a check that it has one line for each row."""
    rows = matrix(x, name)
    if len(rows) != n:
        raise ShapeError(f"Stream.of: expected {plural(n, 'row')} of {name}, got {len(rows)}.")
    return rows


def sequence(values: Any, n: int, name: str) -> Sequence[Any]:
    """Return a column's entries after a check that there is one for each row."""
    array = isinstance(values, Tensor | np.ndarray)
    listed = cast("list[Any]", values.tolist() if array else list(values))  # pyright: ignore[reportUnknownMemberType]
    if len(listed) != n:
        raise ShapeError(f"Stream.of: expected {n} entries of {name}, got {len(listed)}.")
    return listed


def integers(values: Any, n: int, name: str) -> Tensor:
    """Return a column of integers, or its default values if no values are given."""
    if values is None:
        return torch.full((n,), COLUMNS[name].default, dtype=torch.int64)
    tensor = _numbers(values, n, name)
    if tensor.shape == (n, 1):
        tensor = tensor[:, 0]
    if tensor.shape != (n,):
        raise ShapeError(
            f"Stream.of: expected {n} entries of {name}, got shape {tuple(tensor.shape)}."
        )
    if tensor.is_floating_point() and not bool((tensor == tensor.round()).all()):
        raise ShapeError(f"Stream.of: expected whole numbers as {name}, got {tensor.dtype}.")
    return tensor.detach().to("cpu", torch.int64)


def _classes(values: Any) -> Any:
    """Return the classes of one-hot rows; other values as they are."""
    shape = getattr(values, "shape", ())
    if len(shape) != 2 or shape[1] < 2:
        return values
    rows = torch.as_tensor(values)
    if bool((rows.count_nonzero(1) == 1).all()) and bool((rows.amax(1) == 1).all()):
        return rows.int().argmax(1)
    raise ShapeError(
        f"Stream.of: expected one class for each row as label, got shape {tuple(shape)} whose rows "
        "are not one-hot. Pass class numbers; several labels of a row are not read from arrays."
    )


def labels(values: Any, n: int) -> Tensor:
    """Return class numbers, and warn if two classes are written as -1 and 1."""
    label = integers(_classes(values), n, "label")
    if n and (least := int(label.min())) < -1:
        raise ShapeError(
            f"Stream.of: expected classes numbered from 0 as label, or -1 for none, got {least}. "
            "Number the classes, such as with scikit-learn's LabelEncoder."
        )
    missing = int((label == -1).sum())
    if 0 < missing < n and bool((label.abs() == 1).all()):
        warnings.warn(
            f"Stream.of: {missing:,} of {n:,} labels are -1, which means 'none', and all "
            "others are 1, so only one class remains. Number the classes 0 and 1, unless the "
            "rows with -1 really have no label.",
            SondeWarning,
            stacklevel=4,
        )
    return label


def _numbers(values: Any, n: int, name: str) -> Tensor:
    """Return a column as a tensor, without converting numeric arrays to lists."""
    if isinstance(values, Tensor):
        return values
    if is_array(values) and values.dtype.kind in "iufb":
        return torch.from_numpy(values.copy())  # pyright: ignore[reportUnknownMemberType]
    listed = sequence(values, n, name)
    try:
        return torch.as_tensor(listed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"Stream.of: expected whole numbers as {name}, got entries like {listed[:1]}. "
            "Number the classes, such as with scikit-learn's LabelEncoder."
        ) from error


def entries(values: Any, n: int, name: str) -> Tensor:
    """Return a declared column: a line for each row, or integers."""
    column = COLUMNS[name]
    return integers(values, n, name) if column.shape == "row" else matrix_of_rows(values, n, name)
