"""Allowed output paths: one rule for every file and folder that a user names.

Nothing is written inside a folder that sonde fills itself, nothing replaces what is being read, and
rows go to a folder of their own.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sonde.core.errors import InputError, StoreError
from sonde.files.durable import TEMPORARY, behind_link, require_local
from sonde.files.lock import NAME as LOCK
from sonde.files.places import Place, to_path
from sonde.store.layout import FORMAT, GROUPS, HEAD, MANIFEST, RANGES, read_json
from sonde.store.verifying import is_store

_BEGUN = {LOCK, GROUPS, HEAD}
"""What stands in the folder of a store that was killed before its manifest was written."""
_SHOWN = 3


def check_file(output: Path, *inputs: str | Path) -> None:
    """Raise before any work if an output cannot be written, or would replace an input.

    Raises
    ------
    StoreError
        If the output is a folder, or its folder or bucket does not exist or may not be written.
    InputError
        If the output is one of the files that are read, or lies inside a store, a run or an export.
    """
    if isinstance(output, Place):
        output.require_writable()
        _check_not_read(output, inputs, "file")
        _check_above(output)
        return
    require_local(output)
    folder = behind_link(output).parent
    if not folder.is_dir():
        raise StoreError(f"cannot write {output}: there is no folder {folder}. Create it first.")
    if output.is_dir():
        raise StoreError(f"cannot write {output}: it is a folder. Name a file.")
    _check_not_read(output, inputs, "file")
    _check_above(output)
    if not os.access(folder, os.W_OK):
        raise StoreError(f"cannot write {output}: no permission in {folder}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"cannot write {output}: {folder} does not accept files ({error.strerror}). Name "
            "another folder."
        ) from None


def check_folder(output: Path, *inputs: str | Path, alone: bool = True) -> None:
    """Raise if a folder is a file, an input, inside a store, or holds other files.

    Parameters
    ----------
    output : Path
    *inputs : str or Path
        What is read.
    alone : bool, default=True
        Raise if the folder holds other files. A store is allowed, even if it was only begun: its
        rows are compared once its plan is known.

    Raises
    ------
    InputError
        If the folder cannot be used; the message names the reason.
    StoreError
        If nothing can be written to the output, or it is an address of an unknown kind.
    """
    if isinstance(output, Place):
        output.require_writable()
    else:
        require_local(output)
    if output.is_file():
        raise InputError(f"cannot write {output}: it is a file. Name a folder.")
    _check_not_read(output, inputs, "folder")
    _check_above(output)
    if alone and output.is_dir() and not is_store(output):
        _check_empty(output)


def _check_not_read(output: Path, inputs: Iterable[str | Path], kind: str) -> None:
    for source in inputs:
        if output.exists() and to_path(source).exists() and output.samefile(source):
            raise InputError(
                f"cannot write {output}: this command reads it, so it would be overwritten. "
                f"Name another {kind}."
            )


def _check_empty(output: Path) -> None:
    names = sorted(path.name for path in output.iterdir())
    others = [name for name in names if name not in _BEGUN and TEMPORARY not in name]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise InputError(
            f"cannot write {output}: it holds other files ({', '.join(others[:_SHOWN])}{more}) "
            "and no rows of sonde. Name a new or an empty folder."
        )


def _check_above(output: Path) -> None:
    """Raise for a path inside a folder that sonde manages."""
    for folder in output.resolve().parents:
        kind = _kind_of(folder)
        if kind:
            raise InputError(
                f"cannot write {output}: {folder.name} is {kind}, which may contain no other "
                "files. Write the output beside it."
            )


def _kind_of(folder: Path) -> str:
    """Return the kind of a folder that sonde manages, or "" for other folders."""
    if (folder / MANIFEST).is_file() and _is_manifest(folder / MANIFEST):
        return "a store of rows"
    if (folder / "plan.json").is_file() and (folder / "states").is_dir():
        return "the directory of a run"
    return "a Lance data set" if folder.suffix == ".lance" else ""


def _is_manifest(path: Path) -> bool:
    try:
        return read_json(path).get("format") == FORMAT
    except StoreError:
        return (path.parent / RANGES).is_dir()
