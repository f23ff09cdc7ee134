"""Contents of a store, from its manifests and file names only."""

from collections import Counter
from pathlib import Path
from typing import Any

from sonde.files.lock import holder_of
from sonde.files.places import to_path
from sonde.store.dataset import DataSet, common_schema
from sonde.store.layout import DATA, RANGES, ROWS
from sonde.store.volume import Volume

MODEL_FACTS = ("model", "config", "dtype", "attn")


def describe_store(directory: str | Path) -> dict[str, Any]:
    """Return the facts of a store as JSON values, even while it is being written.

    No file of rows is opened. ``sites`` are those of ``Store.schema``; ``partial_sites`` were added
    to some of its data sets, and do not count until all data sets have them.

    Parameters
    ----------
    directory : str | Path
        Folder of the store.

    Raises
    ------
    StoreError
        If the folder is not a store.
    """
    directory = to_path(directory)
    top = DataSet(directory)
    parts = [top, *(DataSet(directory / DATA / f"{k + 1}") for k in range(top.manifest.n_data))]
    volumes = [volume for part in parts for volume in part.volumes]
    first, sets, sites = top.manifest, [part.manifest for part in parts], common_schema(parts)
    has = Counter(key for part in parts for key in part.schema)
    wanted = sum(len(volume.manifest.ranges()) for volume in volumes)
    done = sum(map(_n_written, volumes))
    holder = holder_of(directory)
    files = [p for volume in volumes for p in (volume.directory / ROWS).rglob("*.arrow")]
    return {
        "kind": "store of rows",
        "tables": {name: [c.schema.key for c in cols] for name, cols in first.tables.items()},
        "sites": [
            {"key": s.key, "dim": s.dim, "dtype": s.dtype, "reducer": str(s.reducer)} for s in sites
        ],
        "partial_sites": [
            {"key": key, "n_data_sets": n} for key, n in has.items() if n < len(parts)
        ],
        "n_examples": sum(m.bounds[-1] for m in sets),
        "n_groups": len({k for m in sets for k in m.group_keys}),
        "grouped": any(m.grouped for m in sets),
        "n_units": sum(len(m.bounds) - 1 for m in sets),
        "unit_size": first.unit_size,
        "columns": first.columns,
        "every": first.every,
        "n_data_sets": len(sets),
        "n_added_sites": sum(len(part.volumes) - 1 for part in parts),
        "ranges_written": f"{done} of {wanted}",
        "in_use_by": None if holder is None else f"process {holder.pid} on {holder.host}",
        "model": None
        if first.identity.get("model") is None
        else {name: first.identity.get(name) for name in MODEL_FACTS},
        "plan": first.plan,
        "seed": first.seed,
        "n_files": len(files),
        "size_bytes": sum(path.stat().st_size for path in files),
    }


def _n_written(volume: Volume) -> int:
    """Return the number of committed ranges, from one listing without opening files."""
    there = {path.name for path in (volume.directory / RANGES).glob("*.json")}
    return sum(f"{start}-{stop}.json" in there for start, stop in volume.manifest.ranges())
