"""Rows of a store part by part, as readable Arrow tables: ids, columns, vectors."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, near
from sonde.core.finite import finite_rows
from sonde.store._columns import CHOSEN
from sonde.store.dataset import DataSet
from sonde.store.layout import DATA
from sonde.store.reading import Store

_KINDS = {
    "bool": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
}
_OWN = (
    *("row", "id", "occurrence", "position", "line", "column"),
    *("group", "label", "label_name", "x", "y"),
)


@dataclass(frozen=True)
class ExportPart:
    """The rows of a batch at the sites of one layout.

    Parameters
    ----------
    first : int
        Number of the first row, counted over the whole export.
    batch : Batch
    example : Int[Tensor, "row"]
        Index into the batch's examples, for each row.
    chosen : dict of str to pa.Array
        Columns that the user chose when the store was written, one value for each row.
    item : Int[np.ndarray, "row"] or None
        Number in the data of each row's item; None if data were appended to the store.
    """

    first: int
    batch: Batch
    example: Tensor
    chosen: dict[str, pa.Array]
    item: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.example)


def chosen_sites(store: Store, sites: str | Sequence[str]) -> Store:
    """Return a store at some of its sites; a full name selects only one kind of rows."""
    own = [s for s in store.schema if "|" not in s.key]
    whole = {
        name: f"{s.key}|{s.reducer}" for s in own for name in (s.key, s.key.removesuffix(":out"))
    }
    return store.select([whole.get(p, p) for p in ([sites] if isinstance(sites, str) else sites)])


def one_layout(store: Store) -> tuple[SiteSchema, ...]:
    """Return the sites of a store, and raise if they were read by several reducers.

    Raises
    ------
    InputError
        If there are several kinds of rows: a file holds a single kind.
    """
    kinds = {(str(s.reducer), s.reducer.keep_special): s.key for s in store.schema}
    if len(kinds) > 1:
        listed = ", ".join(f"{kind[0]} ({key})" for kind, key in kinds.items())
        raise InputError(
            f"export: a file holds one kind of rows, got {listed}. Choose one kind by its "
            "full name (--sites)."
        )
    return store.schema


def chosen_kinds(store: Store, names: Sequence[str] | None) -> dict[str, str]:
    """Return the types of the columns to export; by default, the columns of all data sets.

    Raises
    ------
    InputError
        If the store has no such column.
    """
    sets = [part.manifest.columns for part in data_sets(store)]
    common = {n: k for n, k in sets[0].items() if all(other.get(n) == k for other in sets[1:])}
    for name in names or ():
        if name not in common:
            listed = ", ".join(common) or "none"
            raise InputError(
                f"export: the store has no column {name!r}.{near(name, common)} It has {listed}; "
                "columns are chosen when the store is written."
            )
    return common if names is None else {name: common[name] for name in names}


def data_sets(store: Store) -> list[DataSet]:
    """Return the data sets of a store in order."""
    further = range(1, store.manifest.n_data + 1)
    return [
        DataSet(d) for d in (store.directory, *(store.directory / DATA / str(k) for k in further))
    ]


def parts_of(store: Store, kinds: dict[str, str]) -> Iterator[ExportPart]:
    """Yield the rows of a store in the order of the data, without loading all vectors.

    Raises
    ------
    InputError
        If sites differ in their rows.
    """
    first = 0
    keys = [s.key for s in store.schema]
    held = {CHOSEN + name: name for name in kinds}
    ordered = store.in_order()
    source = ordered.source_rows
    for batch, columns in ordered.parts(0, len(store), list(held)):
        example, position = batch.example[keys[0]], batch.position[keys[0]]
        for key in keys[1:]:
            same = torch.equal(batch.example[key], example)
            if not (same and torch.equal(batch.position[key], position)):
                raise InputError(
                    f"export: the rows of {key} belong to other positions or examples than "
                    f"the rows of {keys[0]}. Choose one of the two sites with --sites."
                )
        index = pa.array(example.numpy())
        chosen = {held[name]: column.take(index) for name, column in columns.items()}
        item = None if source is None else source[batch.order.numpy()][example.numpy()]
        yield ExportPart(first, batch, example, chosen, item)
        first += len(example)


def id_fields(store: Store, kinds: dict[str, str], grid: bool) -> list[pa.Field]:
    """Return the columns that identify a row."""
    fields = [
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("occurrence", pa.int32()),
        pa.field("position", pa.int32()),
    ]
    if grid:
        fields += [pa.field("line", pa.int32()), pa.field("column", pa.int32())]
    if store.grouped:
        fields.append(pa.field("group", pa.string()))
    fields.append(pa.field("label", pa.int64()))
    if store.label_names:
        fields.append(pa.field("label_name", pa.string()))
    taken = {*_OWN, "neighbors", "neighbor_ids"}
    names = {name: f"{name}_" if name in taken else name for name in kinds}
    return fields + [pa.field(names[name], _KINDS[kind]) for name, kind in kinds.items()]


def id_columns(store: Store, part: ExportPart, grid: bool) -> list[pa.Array]:
    """Return the columns that identify some rows; a missing label is null."""
    batch, example = part.batch, part.example.numpy()
    key = store.schema[0].key
    ids = np.asarray([str(i) for i in batch.ids], dtype=object)[example]
    label = batch.label.numpy()[example]
    columns = [
        pa.nulls(len(part), pa.int64()) if part.item is None else pa.array(part.item, pa.int64()),
        pa.array(ids, pa.string()),
        pa.array(np.asarray(batch.occurrence)[example].astype(np.int32)),
        pa.array(batch.position[key].numpy().astype(np.int32)),
    ]
    if grid:
        columns += [pa.array(batch.grid[key][:, i].numpy().astype(np.int32)) for i in (0, 1)]
    if store.grouped:
        groups = np.asarray([text_of(bytes(k)) for k in batch.group_keys], dtype=object)
        columns.append(pa.array(groups[example], pa.string()))
    columns.append(pa.array(label, mask=label < 0))
    if store.label_names:
        columns.append(pa.array(names_of(label, store.label_names), pa.string()))
    return columns + list(part.chosen.values())


def names_of(label: np.ndarray, names: Sequence[str]) -> list[str | None]:
    """Return the name of each class number; None for no label or a class without a name."""
    by_number: dict[int, str] = dict(enumerate(names))
    return [by_number.get(i) for i in label.tolist()]


def text_of(key: bytes) -> str:
    """Return a key as text if it is printable UTF-8, otherwise as hexadecimal digits."""
    try:
        text = key.decode("utf-8")
    except UnicodeDecodeError:
        return key.hex()
    return text if text.isprintable() else key.hex()


def column_names(keys: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Return a unique column name for each site: letters, digits and underscores.

    Examples
    --------
    >>> column_names(["layers.0:out", "layers_0:out", "1"])
    {'layers.0:out': 'layers_0_out', 'layers_0:out': 'layers_0_out_2', '1': 'site_1'}
    """
    names: dict[str, str] = {}
    used = set(taken)
    for key in keys:
        plain = re.sub(r"\W+", "_", key, flags=re.ASCII).strip("_") or "site"
        plain = f"site_{plain}" if plain[0].isdigit() else plain
        name, k = plain, 2
        while name in used:
            name, k = f"{plain}_{k}", k + 1
        names[key] = name
        used.add(name)
    return names


def vector_field(name: str, schema: SiteSchema) -> pa.Field:
    """Return the column of a site's rows; bfloat16 is widened losslessly to float32."""
    kind = {"float64": pa.float64(), "float16": pa.float16()}.get(schema.dtype, pa.float32())
    meta = {"sonde.site": schema.key, "sonde.dtype": schema.dtype}
    return pa.field(name, pa.list_(kind, schema.dim), metadata=meta)


def vector_column(rows: Tensor, finite_only: bool = False) -> pa.Array:
    """Return rows as a column of the type that ``vector_field`` gives.

    With ``finite_only``, rows that are not finite are null.
    """
    wide = rows.float() if rows.dtype == torch.bfloat16 else rows
    values = pa.array(wide.contiguous().reshape(-1).numpy())
    lost = ~finite_rows(rows) if finite_only else torch.zeros(len(rows), dtype=torch.bool)
    mask = {"mask": pa.array(lost.numpy())} if bool(lost.any()) else {}
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1], **mask)
