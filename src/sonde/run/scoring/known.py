"""Columns, group and table lines of each item in a table of scores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sonde.core.errors import InputError, near
from sonde.data.opening import open_source
from sonde.data.sources import Row, Source, is_missing
from sonde.run.instruments.entries import Key
from sonde.run.scoring.exhibit import hashed_id
from sonde.run.scoring.tables import keys_of, part_of

GROUP: Final = "group"


@dataclass(frozen=True)
class KnownItems:
    """The items behind a table of scores, by their index in the data."""

    items: Mapping[int, Row]
    source: Source

    @classmethod
    def of(cls, data: Any) -> "KnownItems":
        """Return the items of data, numbered as in ``sonde score``."""
        source, _ = open_source(data)
        rows = list(source.rows())
        numbers = source.numbers(np.arange(len(rows))).tolist()
        return cls(dict(zip(numbers, rows, strict=True)), source)

    def column(self, name: str) -> dict[int, Any]:
        """Return the value of each item in a column, without items whose value is missing."""
        columns = sorted({key for row in self.items.values() for key in row})
        if name not in columns:
            raise InputError(
                f"evaluate: {self.source.name} has no column {name!r}.{near(name, columns)} It has "
                f"{', '.join(columns)}."
            )
        cells = {i: row.get(name) for i, row in self.items.items()}
        return {i: value for i, value in cells.items() if not is_missing(value)}

    def groups(self, column: str | None) -> dict[int, str]:
        """Return each item's group: from the column, default ``group``, else the item alone."""
        named = column or GROUP
        has_column = any(named in row for row in self.items.values())
        named_groups = self.column(named) if has_column or column is not None else {}
        return {
            i: f"group {named_groups[i]}" if i in named_groups else f"item {i}" for i in self.items
        }

    def parts(self, scored: pa.Table) -> Iterator[tuple[Key, pa.Table, list[int]]]:
        """Yield the lines of each detector and site, with the index of each line's item.

        Raises
        ------
        InputError
            If the table is about other data.
        """
        if "row" not in scored.column_names or scored["row"].null_count:
            raise InputError(
                "evaluate: expected the number of an item as row in every line. Score the data "
                "themselves with `sonde score`, not a store to which data were appended."
            )
        for key in keys_of(scored):
            part = part_of(scored, key)
            numbers = part["row"].to_pylist()
            for number, name in zip(numbers, part["id"].to_pylist(), strict=True):
                item = self.items.get(number)
                own = name if item is None or is_missing(item.get("id")) else str(item["id"])
                if item is None or name not in (own, hashed_id(own)):
                    raise InputError(
                        f"evaluate: expected scores of the items of {self.source.name}, got "
                        f"row {number} with the id {name}, which is not among its "
                        f"{len(self.items):,} items. Name the data that were scored."
                    )
            yield key, part, numbers
