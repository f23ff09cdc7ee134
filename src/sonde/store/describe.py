"""What a store holds, from its manifest and records alone."""

from pathlib import Path
from typing import Any

from sonde.store.layout import RANGES, read_manifest


def describe_store(directory: str | Path) -> dict[str, Any]:
    """Return the facts of a store as JSON values; a store that is still being written has some too.

    Raises
    ------
    StoreError
        If the folder is no store.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    ranges = manifest.ranges()
    done = [r for r in ranges if (directory / RANGES / f"{r[0]}-{r[1]}.json").exists()]
    return {
        "kind": "store of rows",
        "tables": {name: [c.schema.key for c in cols] for name, cols in manifest.tables.items()},
        "n_examples": manifest.bounds[-1],
        "n_groups": len(set(manifest.group_keys)),
        "n_units": len(manifest.bounds) - 1,
        "ranges_written": f"{len(done)} of {len(ranges)}",
        "model": manifest.identity.get("model"),
        "plan": manifest.plan,
        "seed": manifest.seed,
    }
