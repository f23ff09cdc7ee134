"""The numeric input columns of a model, read before any forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.data import ItemInputs
from sonde.data.numbers import as_number
from sonde.findings.evidence.record import DataEvidence
from sonde.tap import LiveStream

ROWS: Final = 20_000
FEW_ROWS: Final = 1_000
NUMBERS: Final = 2_000_000
MOST_COLUMNS: Final = 2_048
LEAST_ROWS: Final = 20


@dataclass(frozen=True, eq=False)
class InputTable:
    """The rows of a table in the form in which the model receives them, in float64.

    Parameters
    ----------
    values : Float[ndarray, "row column"]
        NaN where a number is missing.
    names : tuple of str
        The columns' own names, or their numbers if the input is one tensor.
    are_named : bool
        Whether the data name the columns.
    order : Int[ndarray, "row"]
        The example of each row, by planned order.
    n_read : int
        Rows of the data, those that were left out for a missing number among them.
    missing : mapping of str to int
        In how many of these rows a column has no number.
    """

    values: Float[np.ndarray, "row column"]
    names: tuple[str, ...]
    are_named: bool
    order: Int[np.ndarray, "row"]
    n_read: int
    missing: Mapping[str, int]

    def known(self, column: int) -> Float[np.ndarray, "row2"]:
        """Return the finite numbers of a column."""
        x = self.values[:, column]
        return x[np.isfinite(x)]

    def examples(self, rows: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """Return the examples of some rows."""
        return tuple(int(self.order[i]) for i in rows)


def input_table(stream: LiveStream, data: DataEvidence) -> InputTable | str:
    """Return the numeric columns of the model's inputs, or the reason for none.

    At most 20,000 rows and 2,000,000 numbers, but 1,000 rows; drawn by the seed if there are more.
    """
    inputs = stream.inputs
    n_columns = _width(inputs) if isinstance(inputs, ItemInputs) else None
    if not isinstance(inputs, ItemInputs) or n_columns is None:
        return "the inputs are not rows of numbers"
    n, most = len(inputs), min(ROWS, max(FEW_ROWS, NUMBERS // n_columns))
    chosen = np.arange(n)
    if n > most:
        chosen = np.sort(np.random.default_rng(data.seed).permutation(n)[:most])
    found = _named(inputs, chosen) or _plain(inputs, chosen)
    if found is None:
        return "the inputs are not rows of numbers"
    values, names = found
    if len(values) < LEAST_ROWS or values.shape[1] > MOST_COLUMNS:
        return f"needs {LEAST_ROWS} rows or more, and {MOST_COLUMNS:,} columns or fewer"
    missing = data.missing or {"rows": len(values), "columns": _unknown(values, names)}
    named = inputs.encoder.kind == "numbers"
    rows, counts = int(missing["rows"]), dict(missing["columns"])
    return InputTable(values, names, named, chosen, rows, counts)


def _width(inputs: ItemInputs) -> int | None:
    """Return the number of columns, or None if inputs are not vectors of several numbers."""
    if inputs.encoder.kind == "numbers":
        return len(inputs.layout.inputs)
    first = next(iter(inputs.batches(0, 1)), None)
    vectors = None if first is None else _vectors(first)
    return None if vectors is None else vectors.shape[1]


def _unknown(values: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    counts = np.isnan(values).sum(0)
    return {name: int(n) for name, n in zip(names, counts, strict=True) if n}


def _named(inputs: ItemInputs, chosen: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Return the columns that the data name, with their original numbers in float64."""
    if inputs.encoder.kind != "numbers":
        return None
    names = tuple(inputs.layout.inputs)
    columns = inputs.key_columns(chosen.tolist())
    if any(name not in columns for name in names):
        return None
    x = [[_number(v) for v in columns[name]] for name in names]
    return np.array(x, dtype=np.float64).T, names


def _number(value: Any) -> float:
    found = as_number(value)
    return float("nan") if found is None else found


def _plain(inputs: ItemInputs, chosen: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Return the entries of inputs if each input is one floating-point vector."""
    part = inputs if len(chosen) == len(inputs) else inputs.at(chosen)
    batches = list(part.batches(0, len(part)))
    vectors = [_vectors(batch) for batch in batches]
    known = [v for v in vectors if v is not None]
    if len(known) < len(vectors) or len({v.shape[1] for v in known}) != 1:
        return None
    order = torch.cat([batch.order for batch in batches])
    x = torch.cat(known)
    if len(order) != len(chosen):  # broken items that were left out
        return None
    x = x[torch.argsort(order)]
    return x.numpy(), tuple(f"column {i}" for i in range(x.shape[1]))


def _vectors(batch: InputBatch) -> Float[Tensor, "row column"] | None:
    values = [x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor)]
    is_table = len(values) == 1 and values[0].is_floating_point() and values[0].ndim == 2
    return values[0].detach().double().cpu() if is_table and values[0].shape[1] > 1 else None
