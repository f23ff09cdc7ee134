"""Columns of a store's tables: one for each site, with its tensor layout in Arrow."""

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import torch

from sonde.core.batch import SiteSchema, special_tokens
from sonde.core.site import Reducer, Site

MAX_WIDTH: Final = 1 << 24

ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
}
TORCH_TYPES: Final = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class SiteColumn:
    """One site in a table."""

    name: str
    schema: SiteSchema

    def field(self) -> pa.Field:
        """Return the Arrow field, with the site in its metadata."""
        kind = pa.list_(ARROW_TYPES[self.schema.dtype], self.schema.dim)
        meta = {"sonde.site": self.schema.key, "sonde.dtype": self.schema.dtype}
        return pa.field(self.name, kind, metadata=meta)

    def json(self) -> dict[str, Any]:
        """Return the column as JSON values."""
        return {
            "column": self.name,
            "key": self.schema.key,
            "site": str(self.schema.site),
            "order": self.schema.site.order,
            "reducer": self.schema.reducer.name,
            "axis": self.schema.reducer.axis,
            "keep_special": self.schema.reducer.keep_special,
            "dim": self.schema.dim,
            "dtype": self.schema.dtype,
            "module": self.schema.module,
            "axes": self.schema.axes,
            "prefix": self.schema.prefix,
            "suffix": self.schema.suffix,
            "cls": self.schema.cls,
        }


def plain_name(name: str) -> str:
    """Return a table's name, which becomes a folder, after a check that it is a plain word."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"table name {name!r}")
    return name


def column_of(raw: dict[str, Any]) -> SiteColumn:
    """Return the column described by JSON values, which are all checked."""
    dim = int(raw["dim"])
    if raw["dtype"] not in ARROW_TYPES or not 1 <= dim <= MAX_WIDTH:
        raise ValueError(f"a column of type {raw['dtype']!r} and width {dim}")
    parsed = Site.parse(raw["site"])
    site = Site(parsed.path, parsed.call, parsed.port, parsed.key, order=int(raw["order"]))
    reducer = Reducer(raw["reducer"], raw["axis"], bool(raw["keep_special"]))
    kind = (str(raw["dtype"]), str(raw["module"]), str(raw["axes"]))
    schema = SiteSchema(str(raw["key"]), site, reducer, dim, *kind, *special_tokens(raw))
    return SiteColumn(plain_name(raw["column"]), schema)
