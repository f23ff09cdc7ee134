"""What a store holds, from its manifests and the names of its files alone."""

from pathlib import Path
from typing import Any

from sonde.core.lock import holder_of
from sonde.store.layout import DATA, RANGES, ROWS, Manifest, further_stores, read_manifest

MODEL_FACTS = ("model", "config", "dtype", "attn")


def describe_store(directory: str | Path) -> dict[str, Any]:
    """Return the facts of a store as JSON values; a store that is still being written has some too.

    No file of rows is opened.

    Raises
    ------
    StoreError
        If the folder is no store.
    """
    directory = Path(directory)
    first = read_manifest(directory)
    folders = [directory, *further_stores(directory, first)]
    manifests = [first, *map(read_manifest, folders[1:])]
    is_data = [folder == directory or folder.parent.name == DATA for folder in folders]
    sets = [m for m, data in zip(manifests, is_data, strict=True) if data]
    added = [m for m, data in zip(manifests, is_data, strict=True) if not data]
    wanted = sum(len(m.ranges()) for m in manifests)
    done = sum(map(_n_written, folders, manifests))
    holder = holder_of(directory)
    files = [p for folder in folders for p in (folder / ROWS).rglob("*.arrow")]
    return {
        "kind": "store of rows",
        "tables": {name: [c.schema.key for c in cols] for name, cols in first.tables.items()},
        "sites": [
            {"key": c.schema.key, "dim": c.schema.dim, "dtype": c.schema.dtype}
            for m in (first, *added)
            for columns in m.tables.values()
            for c in columns
        ],
        "n_examples": sum(m.bounds[-1] for m in sets),
        "n_groups": len({k for m in sets for k in m.group_keys}),
        "grouped": any(m.grouped for m in sets),
        "n_units": sum(len(m.bounds) - 1 for m in sets),
        "unit_size": first.unit_size,
        "columns": first.columns,
        "every": first.every,
        "n_data_sets": len(sets),
        "n_added_sites": len(added),
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


def _n_written(folder: Path, manifest: Manifest) -> int:
    """Return how many of the planned ranges are committed: one listing, no file opened."""
    there = {path.name for path in (folder / RANGES).glob("*.json")}
    return sum(f"{start}-{stop}.json" in there for start, stop in manifest.ranges())
