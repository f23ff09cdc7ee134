"""Columns of numbers in a table, joined to one feature vector per row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import tensor_key
from sonde.core.wording import plural
from sonde.data.encoder import Collated, Encoder, Prepared, called
from sonde.data.sources import Row
from sonde.data.tensors import stacked_items

MISSING = ("", "NA", "N/A", "NULL")
SHOWN_COLUMNS = 6


@final
@dataclass(frozen=True, eq=False)
class NumbersEncoder(Encoder):
    """Numbers in several columns as one vector, in the order of the columns.

    Parameters
    ----------
    columns : tuple of str
    main : str
        Name of the model's main input.
    names : frozenset of str
        Parameters of the model's ``forward``.
    dtype : torch.dtype or None
        Widest type of the model's weights, which the numbers are brought to: a table has none.
    unused : tuple of str, default=()
        Other columns of the table, which are left out.
    """

    columns: tuple[str, ...]
    main: str
    names: frozenset[str]
    dtype: torch.dtype | None = None
    unused: tuple[str, ...] = ()
    kind: str = "numbers"

    def key(self, row: Row) -> bytes:
        """Hash the numbers in the order of their columns."""
        return tensor_key(self._vector(row))

    def missing(self, row: Row) -> tuple[str, ...]:
        """Return the columns without a number in a row."""
        return tuple(n for n in self.columns if _is_missing(row.get(n)) or _is_nan(row.get(n)))

    def size(self, row: Row) -> int:
        """Return the bytes of the vector."""
        return 8 * len(self.columns)

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Return a vector for each row."""
        return [Prepared(self._vector(rows[row])) for row, _ in wanted]

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Stack the vectors."""
        x = stacked_items([item.value for item in items], "columns").to(self.dtype or torch.float32)
        return Collated(*called(self.main, x, self.names))

    def identity(self) -> dict[str, Any]:
        """Return the column names as identity."""
        return {"kind": self.kind, "inputs": list(self.columns), "dtype": str(self.dtype)}

    def notes(self) -> list[str]:
        """Return a note on the columns that became features."""
        shown = ", ".join(self.columns[:SHOWN_COLUMNS])
        more = len(self.columns) - SHOWN_COLUMNS
        rest = f" and {more} more" if more > 0 else ""
        many = plural(len(self.columns), "column of numbers is", "columns of numbers are")
        texts = [f"{many} read as one vector: {shown}{rest}."]
        if self.unused:
            texts.append(
                f"Not read, because they are not among these columns: {', '.join(self.unused)}."
            )
        return texts

    def _vector(self, row: Row) -> Float[Tensor, "dim"]:
        return torch.tensor([_number(row.get(n), n) for n in self.columns], dtype=torch.float64)


def are_numbers(values: Sequence[Any]) -> bool:
    """Return whether most present values are numbers or can be parsed as numbers.

    A text among them is an error of its row, which can be named and skipped.

    Examples
    --------
    >>> are_numbers(["1.5", "", 2]), are_numbers(["1.5", "a"]), are_numbers([[1.0]])
    (True, False, False)
    """
    present = [v for v in values if not _is_missing(v)]
    return sum(as_number(v) is not None for v in present) > len(present) / 2


def _number(value: Any, column: str) -> float:
    if _is_missing(value):
        raise InputError(f"no value in column {column!r}")
    number = as_number(value)
    if number is None:
        got = f"one of {value.bit_length():,} bits" if isinstance(value, int) else repr(value)
        raise InputError(f"expected a number in column {column!r} (float64), got {got}")
    return number


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().upper() in MISSING)


def _is_nan(value: Any) -> bool:
    number = as_number(value)
    return number is not None and number != number


def as_number(value: Any) -> float | None:
    """Return a number, or the number in a text, as float64; None for other values.

    Examples
    --------
    >>> as_number(" 1.5"), as_number(2), as_number("1_000"), as_number(10**400)
    (1.5, 2.0, None, None)
    """
    if not isinstance(value, str | int | float | np.integer | np.floating):
        return None
    if isinstance(value, str) and "_" in value:
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
