"""The run directory beside an output file, and its removal."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sonde.core.errors import MachineError, SondeError, StoreError
from sonde.files.durable import remove_tree
from sonde.files.lock import RunLock
from sonde.run.passes.chain import CHECKPOINT
from sonde.run.passes.driver import Interrupted
from sonde.run.passes.ledger import PLAN, STATES


def run_directory(output: Path) -> Path:
    """Return the run directory of an output file.

    Examples
    --------
    >>> run_directory(Path("out/probe.sonde")).as_posix()
    'out/probe.run'
    """
    return output.with_suffix(".run")


def held(directory: Path | None) -> AbstractContextManager[Any]:
    """Lock a run directory against other runs, for all passes of a run."""
    return nullcontext() if directory is None else RunLock(directory)


@contextmanager
def dropped_on_error(directory: Path | None) -> Iterator[None]:
    """Remove a run directory that this run created, if its data or options are invalid.

    After an interrupt, a full disk, a lack of memory or the loss of workers the directory stays:
    the same command goes on from there. It is removed if no unit of the first pass was done.
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
    """Return whether any pass has committed units."""
    return any(directory.rglob("*.sonde"))


def is_run(directory: Path) -> bool:
    """Return whether the directory holds the plan of a run that can continue."""
    return (directory / PLAN).exists()


def remove_run(directory: Path) -> None:
    """Remove the files of runs in a run directory, and the directory if it is then empty.

    If another run holds the directory, all stays: that run may have begun in the meantime.
    """
    if not is_run(directory):
        return
    try:
        with RunLock(directory):
            _remove(directory)
    except StoreError as refused:
        if not isinstance(refused.__cause__, OSError):
            return
        _remove(directory)  # a full disk has no room for a lock


def _remove(directory: Path) -> None:
    passes = [d for d in directory.iterdir() if d.is_dir() and is_run(d)]
    for child in passes:
        _remove(child)
    remove_tree(directory / STATES)
    for name in (PLAN, CHECKPOINT):
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()
