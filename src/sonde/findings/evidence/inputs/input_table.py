"""The numeric input columns of a model, read before any forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.data import ItemInputs
from sonde.data.numbers import as_number
from sonde.findings.evidence.record import DataEvidence, Evidence
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import input_tensors

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
        The columns' own names, or their numbers, with the name of their tensor if there are several
        input tensors.
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


def read_table(stream: LiveStream, evidence: Evidence) -> InputTable | str:
    """Return the numeric columns of the model's inputs, as a part of the evidence."""
    return input_table(stream, evidence.data)


def input_table(stream: LiveStream, data: DataEvidence) -> InputTable | str:
    """Return the numeric columns of the model's inputs, or the reason for none.

    At most 20,000 rows and 2,000,000 numbers, but 1,000 rows; drawn by the seed if there are more.
    """
    inputs = stream.inputs
    module = stream.model.module
    n_columns = _width(module, inputs) if isinstance(inputs, ItemInputs) else None
    if not isinstance(inputs, ItemInputs) or n_columns is None:
        return "the inputs are not rows of numbers"
    n, most = len(inputs), min(ROWS, max(FEW_ROWS, NUMBERS // n_columns))
    chosen = np.arange(n)
    if n > most:
        chosen = np.sort(np.random.default_rng(data.seed).permutation(n)[:most])
    table = _named(inputs, chosen) or _plain(module, inputs, chosen)
    if table is None:
        return "the inputs are not rows of numbers"
    values, names = table
    if len(values) < LEAST_ROWS or values.shape[1] > MOST_COLUMNS:
        return f"needs {LEAST_ROWS} rows or more, and {MOST_COLUMNS:,} columns or fewer"
    missing = data.missing or {"rows": len(values), "columns": _unknown(values, names)}
    named = inputs.encoder.kind == "numbers"
    rows, counts = int(missing["rows"]), dict(missing["columns"])
    return InputTable(values, names, named, chosen, rows, counts)


def _width(module: nn.Module, inputs: ItemInputs) -> int | None:
    """Return the number of columns, or None if no inputs are vectors of several numbers."""
    if inputs.encoder.kind == "numbers":
        return len(inputs.layout.inputs)
    first = next(iter(inputs.batches(0, 1)), None)
    columns = {} if first is None else _columns(module, first)
    return len(columns) if len(columns) > 1 else None


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
    number = as_number(value)
    return float("nan") if number is None else number


def _plain(
    module: nn.Module, inputs: ItemInputs, chosen: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Return the entries of all inputs that are floating-point vectors."""
    part = inputs if len(chosen) == len(inputs) else inputs.at(chosen)
    batches = list(part.batches(0, len(part)))
    columns = [_columns(module, batch) for batch in batches]
    if not columns or len({tuple(some) for some in columns}) != 1:
        return None
    order = torch.cat([batch.order for batch in batches])
    x = torch.cat([torch.stack([*some.values()], 1) for some in columns])
    if len(order) != len(chosen):  # broken items that were left out
        return None
    x = x[torch.argsort(order)]
    return x.numpy(), tuple(columns[0])


def _columns(module: nn.Module, batch: InputBatch) -> dict[str, Float[Tensor, "row"]]:
    """Return the columns of all floating-point vectors among the inputs, by name."""
    given = input_tensors(module, batch)
    tables = {n: one.x for n, one in given.items() if one.kind == "numbers" and one.x.ndim <= 2}
    columns: dict[str, Tensor] = {}
    for name, x in tables.items():
        x = x.detach().double().cpu().reshape(len(x), -1)
        of = "" if len(given) == 1 else f" of {name}"
        is_one = len(given) > 1 and x.shape[1] == 1
        columns |= {name if is_one else f"column {i}{of}": x[:, i] for i in range(x.shape[1])}
    return columns
