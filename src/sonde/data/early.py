"""Check a user's data argument before the model is loaded; objects in memory are not checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, near
from sonde.data.arrays import ARRAY_SUFFIXES
from sonde.data.hub import is_saved_dataset
from sonde.data.opening import open_file, require_path, tables_of
from sonde.data.shipped import is_shipped, shipped_source
from sonde.data.splits import path_of


def check_data(data: Any, columns: Sequence[str | None] = (), skip_bad: bool = False) -> None:
    """Raise at once if a path does not exist, or a table lacks a named column.

    Data sets by name are not looked up, and a folder of images is not walked.

    Parameters
    ----------
    data : str, path or other
        Data, as ``open_inputs`` takes them; only texts and paths are checked.
    columns : sequence of str or None
        Columns that the user named.
    skip_bad : bool, default=False
        Pass over broken rows.

    Raises
    ------
    InputError
        If data or a column is missing, or data are empty; the message names what exists.
    """
    if not isinstance(data, str | Path):
        return
    if isinstance(data, str) and is_shipped(data):
        shipped_source(data)
        return
    files = tables_of(data)
    if files is not None:
        for file in files:
            check_data(file, columns, skip_bad)
        return
    path = path_of(data)
    require_path(data)
    if not path.is_file() or path.suffix.lower() in ARRAY_SUFFIXES:
        if path.is_dir() and not is_saved_dataset(path) and not any(path.iterdir()):
            raise InputError(f"{path} is empty. Pass a folder of images, or a file.")
        return
    source = open_file(path, skip_bad)
    named = [n.strip() for names in columns for n in (names or "").split(",") if n.strip()]
    sample = source.columns(named)
    if named and not sample:
        raise InputError(f"{source.name} has no rows. Pass data with items.")
    for name in named:
        if name not in sample:
            raise InputError(
                f"{source.name} has no column {name!r}, only "
                f"{', '.join(sample)}.{near(name, sample)}"
            )
