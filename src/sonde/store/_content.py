"""Checks of the rows of a store, one record batch at a time."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sonde.core.wording import plural
from sonde.store._columns import CHOSEN
from sonde.store.layout import EXAMPLES
from sonde.store.manifest import Manifest

_IDS = {
    EXAMPLES: ("id", "key", "group_key", "order", "occurrence", "label"),
    "": ("example", "occurrence", "position", "index", "label"),
}

Found = Iterator[tuple[str, str]]


def schema_faults(schema: pa.Schema, table: str, manifest: Manifest | None) -> Iterator[str]:
    """Yield how a file's columns differ from the columns in the manifest."""
    wanted = _IDS[EXAMPLES if table == EXAMPLES else ""]
    lacking = [name for name in wanted if schema.names.count(name) != 1]
    if lacking:
        yield f"lacks the columns {', '.join(lacking)}"
    for column in () if manifest is None else manifest.tables.get(table, ()):
        field = column.field()
        if schema.names.count(column.name) != 1:
            yield f"lacks the column {column.name} of {column.schema.key}"
            continue
        found = schema.field(column.name)
        if found.type != field.type:
            yield f"column {column.name} is {found.type}, the manifest says {field.type}"
        elif (found.metadata or {}).get(b"sonde.site") != column.schema.key.encode():
            yield f"column {column.name} is not of the site {column.schema.key}"


def batch_faults(
    parts: dict[str, pa.RecordBatch],
    said: dict[str, int],
    manifest: Manifest | None,
    unit: int,
    seen: set[int],
) -> Found:
    """Yield (table, what is wrong) of one record batch of every table; add orders to ``seen``."""
    broken = False
    for name, part in parts.items():
        for what in _values(part, said[name]):
            broken = True
            yield name, what
    if broken:
        return
    yield from _orders(parts[EXAMPLES], manifest, unit, seen)
    for name, part in parts.items():
        if name != EXAMPLES:
            yield from ((name, what) for what in _aligned(part, parts[EXAMPLES]))


def _values(part: pa.RecordBatch, n_rows: int) -> Iterator[str]:
    try:
        part.validate(full=True)
    except pa.ArrowException as error:
        yield f"Arrow refuses it: {error}"
        return
    if part.num_rows != n_rows:
        yield f"a batch has {plural(part.num_rows, 'row')}, its record says {n_rows}"
    known = [name for name in part.schema.names if not name.startswith(CHOSEN)]
    nulls = [name for name in known if part.column(name).null_count]
    if nulls:
        yield f"has empty values in {', '.join(nulls)}"


def _orders(
    examples: pa.RecordBatch, manifest: Manifest | None, unit: int, seen: set[int]
) -> Found:
    """Check that every example stands once, in its unit, with its planned group."""
    order = examples.column("order").to_pylist()
    twice = len(order) - len(set(order)) + len(seen & set(order))
    if twice:
        yield EXAMPLES, f"unit {unit} holds {plural(twice, 'example')} twice"
    seen |= set(order)
    if manifest is None:
        return
    low, high = manifest.bounds[unit], manifest.bounds[unit + 1]
    outside = [o for o in order if not low <= o < high]
    if outside:
        yield EXAMPLES, f"unit {unit} holds {plural(len(outside), 'example')} of others"
        return
    groups = examples.column("group_key").to_pylist()
    if any(manifest.group_keys[o] != g for o, g in zip(order, groups, strict=True)):
        yield EXAMPLES, f"the groups of unit {unit} are not those of the manifest"


def _aligned(part: pa.RecordBatch, examples: pa.RecordBatch) -> Iterator[str]:
    """Check that every row points at an example, agrees with it, and stands once."""
    index = np.asarray(part.column("index"))
    if len(index) and not 0 <= index.min() <= index.max() < examples.num_rows:
        yield "a row points at no example"
        return
    for name in ("occurrence", "label"):
        if not np.array_equal(np.asarray(part.column(name)), np.asarray(examples[name])[index]):
            yield f"the column {name} is not that of the examples"
    names = ["index", "position", *(n for n in ("line", "column") if n in part.schema.names)]
    place = np.stack([np.asarray(part.column(name)) for name in names])
    if np.unique(place, axis=1).shape[1] < place.shape[1]:
        yield "rows stand there twice"
