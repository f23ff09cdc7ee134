"""The run directory beside an output file: whether it may be written, and how it goes away."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sonde.core.errors import InputError, MachineError, SondeError, StoreError
from sonde.run.passes.chain import CHECKPOINT
from sonde.run.passes.driver import Interrupted
from sonde.run.passes.ledger import PLAN, STATES


def beside(output: Path) -> Path:
    """Return the run directory of an output file.

    Examples
    --------
    >>> beside(Path("out/probe.sonde")).as_posix()
    'out/probe.run'
    """
    return output.with_suffix(".run")


def check_writable(output: Path, *inputs: str | Path) -> None:
    """Refuse an output that could not be written, or that would replace an input, before any work.

    Raises
    ------
    StoreError
        If its folder does not exist or may not be written, or the output is a folder.
    InputError
        If the output is one of the files that are read.
    """
    import os

    folder = output.parent
    if not folder.is_dir():
        raise StoreError(f"cannot write {output}: there is no folder {folder}. Make it first.")
    if output.is_dir():
        raise StoreError(f"cannot write {output}: it is a folder. Name a file.")
    for source in inputs:
        if output.exists() and Path(source).exists() and output.samefile(source):
            raise InputError(
                f"cannot write {output}: it is read here, and would be replaced. Name another file."
            )
    if not os.access(folder, os.W_OK):
        raise StoreError(f"cannot write {output}: no permission in {folder}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"cannot write {output}: {folder} takes no files ({error.strerror}). Name another "
            "folder."
        ) from None


@contextmanager
def dropped_on_error(directory: Path | None) -> Iterator[None]:
    """Remove a run directory that this run made, where its data or options turn out to be wrong.

    What is interrupted, or stopped by a full disk, for want of memory or with its workers, stays:
    the same command goes on from there; unless no unit of the first pass was done.
    """
    existed = directory is not None and directory.exists()
    try:
        yield
    except (StoreError, MachineError):
        if directory is not None and not existed and not _holds_units(directory):
            remove_run(directory)
        raise
    except Interrupted as stop:
        if stop.partial.done == 0 and stop.first and directory is not None:
            remove_run(directory)
        raise
    except SondeError:
        if directory is not None and not existed:
            remove_run(directory)
        raise


def _holds_units(directory: Path) -> bool:
    """Return whether something of any pass was committed."""
    return any(directory.rglob("*.sonde"))


def is_run(directory: Path) -> bool:
    """Return whether a run that can go on has left something here."""
    return (directory / PLAN).exists()


def remove_run(directory: Path) -> None:
    """Remove what runs left in a run directory, and the directory if nothing else is in it."""
    if not is_run(directory):
        return
    passes = [d for d in directory.iterdir() if d.is_dir() and (d / PLAN).exists()]
    for child in passes:
        remove_run(child)
    shutil.rmtree(directory / STATES, ignore_errors=True)
    for name in (PLAN, CHECKPOINT):
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()
