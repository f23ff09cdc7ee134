"""A table without a model: its columns of numbers are the only states."""

from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from sonde.core.inputs import Model

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")


@final
class Columns(nn.Module):
    """Pass on a table's numbers, so that they can be read like a layer's output."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of the numbers."""
        return x.clone()


@final
class TableAlone(nn.Module):
    """Stand-in model that returns the columns themselves, which are not logits."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = Columns()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the columns under a name that no model's answer has."""
        return {"columns": self.columns(x)}


def is_table(data: Any) -> bool:
    """Return whether data are a table: a file with such an ending, or rows in memory.

    Examples
    --------
    >>> is_table("rows.csv"), is_table("states.npz"), is_table([{"height": 1.8}])
    (True, False, True)
    """
    return not isinstance(data, str | Path) or Path(data).suffix.lower() in SUFFIXES


def table_model() -> Model:
    """Return the stand-in model for reading a table alone."""
    return Model(TableAlone().eval(), name="-")
