"""The plan of a store, from its first batch: the manifest and the files beside it."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence

import safetensors.torch

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import StoreError
from sonde.core.plan import Plan
from sonde.core.stream import Stream
from sonde.store._identity import only_sites
from sonde.store.column import ARROW_TYPES, SiteColumn
from sonde.store.layout import GROUPS, HEAD
from sonde.store.manifest import Manifest, pack_groups

FILE_BYTES = 64 * 2**20
KEEP = "keep"


def files_beside(stream: Stream, first: Batch) -> dict[str, bytes]:
    """Return the files beside the manifest: groups, and the final linear layer."""
    contents = {GROUPS: pack_groups(stream.group_keys, stream.source_rows)}
    if first.head is not None:
        weight, bias = first.head
        tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
        plain = {k: x.detach().cpu().contiguous().clone() for k, x in tensors.items()}
        contents[HEAD] = safetensors.torch.save(plain)
    return contents


def planned(
    stream: Stream,
    first: Batch,
    unit_size: int,
    columns: Mapping[str, str],
    hashes: Mapping[str, str],
    keys: Sequence[str] | None,
    beside: Mapping[str, bytes],
) -> Manifest:
    """Return the manifest for the store of a stream, or of some of its kinds of rows.

    Raises
    ------
    StoreError
        If rows have a type that no column can hold.
    """
    schema = tuple(s for s in stream.schema if keys is None or s.key in keys)
    unknown = sorted({s.dtype for s in schema} - set(ARROW_TYPES))
    if unknown:
        raise StoreError(
            f"write_store: rows of type {', '.join(unknown)} cannot be stored. Convert them to "
            "float16, or load the model in another type (dtype=, --dtype)."
        )
    bounds = tuple(stream.units(unit_size))
    identity = only_sites(stream.identity(), [s.key for s in schema])
    lines = (f"{name}: {kind} {hashes[name]}" for name, kind in sorted(columns.items()))
    wanted = ("store", *lines)
    return Manifest(
        plan=Plan(identity, wanted, bounds).id,
        bounds=bounds,
        level=_level(schema, first, len(bounds) - 1, unit_size),
        identity=identity,
        tables=_tables(schema, first),
        group_keys=tuple(stream.group_keys),
        source_rows=stream.source_rows,
        grouped=stream.grouped,
        seed=stream.seed,
        unit_size=unit_size,
        columns=dict(columns),
        every=int(identity.get(KEEP, 1)),
        files={n: hashlib.blake2b(c, digest_size=16).hexdigest() for n, c in beside.items()},
        label_names=stream.label_names,
        own_labels=stream.own_labels,
        labels_number_outputs=stream.labels_number_outputs,
        behaviour=stream.behaviour,
    )


def _tables(schema: tuple[SiteSchema, ...], batch: Batch) -> dict[str, tuple[SiteColumn, ...]]:
    """Return the sites by row layout, where sites with shared tensors have one layout."""
    layouts: dict[tuple[int, int], list[SiteSchema]] = {}
    for site in schema:
        layout = (id(batch.example[site.key]), id(batch.position[site.key]))
        layouts.setdefault(layout, []).append(site)
    tables: dict[str, tuple[SiteColumn, ...]] = {}
    numbers = itertools.count()
    for sites in layouts.values():
        name = "pooled" if sites[0].reducer.one_row else sites[0].reducer.name
        while name in tables:
            name += "_"
        tables[name] = tuple(SiteColumn(f"s{next(numbers):03d}", site) for site in sites)
    return tables


def _level(schema: tuple[SiteSchema, ...], batch: Batch, n_units: int, unit_size: int) -> int:
    """Return j so that the files of ``2**j`` units have about 64 MB, by their sizes only."""
    per_example = sum(batch.rows[s.key].nbytes for s in schema) / len(batch)
    units = FILE_BYTES / max(1.0, per_example * unit_size)
    most = max(0, math.ceil(math.log2(max(1, n_units))))
    return min(most, max(0, round(math.log2(max(1.0, units)))))
