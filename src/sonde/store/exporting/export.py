"""Export of a store to a file, whose type is chosen by the ending of its name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.core.instrument import SAMPLE
from sonde.core.renaming import renamed
from sonde.store.exporting.arrays import write_npy, write_npz, write_safetensors
from sonde.store.exporting.parts import chosen_kinds, chosen_sites, one_layout
from sonde.store.exporting.tables import Table, write_parquet
from sonde.store.exporting.to_lance import lance_module, write_lance
from sonde.store.exporting.view import view_of
from sonde.store.outputs import check_file
from sonde.store.reading import Store

SUFFIXES = (".parquet", ".npz", ".safetensors", ".lance")
ARRAYS = {".npz": write_npz, ".safetensors": write_safetensors, "": write_npy}


def is_export(path: Path) -> bool:
    """Return whether a path has the ending of an export: a folder for Lance, else a file."""
    kind = path.suffix.lower()
    return kind in SUFFIXES and path.is_dir() == (kind == ".lance")


def check_export(path: Path) -> None:
    """Raise if a name has no known ending, or cannot be written.

    Raises
    ------
    InputError
        If the ending is unknown (the message lists the endings), or the file would lie inside a
        store.
    """
    kind = path.suffix.lower()
    if kind not in (*SUFFIXES, ""):
        raise InputError(
            f"export: expected a name that ends in {', '.join(SUFFIXES)}, or a folder, got {path}."
        )
    if kind == ".lance":
        lance_module()
    if not (kind in (".lance", "") and path.is_dir()):  # which is told as what it is
        check_file(path)


@renamed(progress="tick")
def export_store(
    store: Store | str | Path,
    path: str | Path,
    *,
    sites: str | Sequence[str] = "auto",
    columns: Sequence[str] | None = None,
    rows: bool = False,
    neighbors: int = 10,
    sample: int = SAMPLE,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write a store as one file of another format, and return a description of the file.

    Vectors are never all in memory; ids and groups are, and Lance's index takes more as rows grow.
    The file appears whole or not at all.

    Parameters
    ----------
    store : Store or path
        Store of rows, or its folder.
    path : path
        ``.parquet``: ids, columns and where rows stand in a picture of the last site;
        ``.npz`` and ``.safetensors``: the rows as arrays by site, with id, group, position, label;
        no ending: the same as a folder of ``.npy`` files;
        ``.lance``: a Lance data set of everything, with a vector index on each site; rows that are
        not finite are null there, and no search finds them.
    sites : str or sequence, default="auto"
        Which sites, as ``Store.select`` takes them, except that a whole name means only one kind of
        rows: ``layers.3`` is not ``layers.3|tokens``. All must be read by one reducer.
    columns : sequence of str or None, default=None
        Stored columns to write, in tables; None is all.
    rows : bool, default=False
        Add the rows themselves to a Parquet file.
    neighbors : int, default=10
        Nearest rows of the sample that each row gets in a table; 0 leaves them out.
    sample : int, default=2048
        Rows with the smallest sampling keys, from which directions and neighbours come.
    progress : callable
        Called with the number of examples after each piece.

    Raises
    ------
    InputError
        If the ending is unknown, a column does not exist, sites differ in their rows, or the file
        would lie inside a store.
    StoreError
        If the store is not whole, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower()
    check_export(path)
    if neighbors < 0 or sample < 2:
        raise InputError(
            f"export: expected neighbors of at least 0 and a sample of at least 2, got {neighbors} "
            f"and {sample}."
        )
    chosen = chosen_sites(store if isinstance(store, Store) else Store(store, checked=True), sites)
    schema = one_layout(chosen)
    if kind in ARRAYS:
        if columns:
            raise InputError(
                f"export: {kind or '.npy'} carries no columns. Write {path.stem}.parquet."
            )
        n_rows = ARRAYS[kind](chosen, path, progress)
    else:
        kinds = chosen_kinds(chosen, columns)
        view = view_of(chosen, schema[-1].key, sample, neighbors)
        lance = kind == ".lance"
        table = Table(chosen, kinds, view, rows or lance, finite_only=lance)
        n_rows = (write_parquet if kind == ".parquet" else write_lance)(table, path, progress)
    size = sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size
    keys = [s.key for s in schema]
    return {"file": str(path), "sites": keys, "n_rows": n_rows, "size_bytes": size}
