"""Checks of all files that sonde writes; of a report the hash and the schema."""

from collections.abc import Callable
from pathlib import Path

from sonde.core.errors import InputError, StateError, StoreError
from sonde.core.renaming import renamed
from sonde.files.places import to_path
from sonde.report._schema import check_report
from sonde.report.documents import KINDS, UNSEALED, other_page
from sonde.report.files import is_sealed, load_report
from sonde.run.comparing.verify_run import is_run_directory, verify_run
from sonde.run.comparing.verify_state import verify_state
from sonde.run.comparing.verify_track import is_track, verify_track
from sonde.store import Fault, Soundness, is_store, verify_store
from sonde.store.exporting import is_export, verify_export

_UNSEALED = "the file holds no hash, so only its form was checked"


@renamed(progress="tick")
def verify(path: str | Path, progress: Callable[[int], None] = lambda _: None) -> Soundness:
    """Check every byte of a store, a state, a run directory, a report or an export.

    Parameters
    ----------
    path : path
        File or folder that sonde wrote.
    progress : callable, optional
        Called with the number of examples, or of states, after each piece.

    Raises
    ------
    InputError
        If there is no such file, or sonde writes none of its kind.
    StoreError
        If it cannot be read, or a later version wrote it.
    """
    path = to_path(path)
    if not path.exists():
        raise InputError(f"verify: there is no file {path}.")
    if is_export(path):
        return verify_export(path)
    if path.is_dir():
        if is_store(path):
            return verify_store(path, progress)
        if is_run_directory(path):
            return verify_run(path, progress)
        if is_track(path):
            return verify_track(path, progress)
        raise InputError(
            f"verify: {path} is neither a store of rows, a run directory nor the recorded "
            "steps of a training run."
        )
    if path.suffix == ".sonde":
        return verify_state(path)
    if path.suffix in (".json", ".html", ".htm"):
        return verify_report(path)
    raise InputError(
        "verify: expected a .sonde file, a store, a run directory, a report or an export, got "
        f"{path}."
    )


def verify_report(path: str | Path) -> Soundness:
    """Check every byte of a report, or of another command's page, in HTML or JSON.

    Raises
    ------
    StoreError
        If it cannot be read.
    """
    path = to_path(path)
    checked = {"n_files": 1, "n_bytes": path.stat().st_size}
    try:
        sealed = is_sealed(path)
        if sealed is False:
            raise StateError("its bytes differ from those that were written")
        other = other_page(path)
        if other is not None:
            notes = () if sealed else (_UNSEALED,)
            if not sealed and other.keys() != UNSEALED:
                raise StateError(
                    "it has no hash, and its keys are not those of a file that sonde writes "
                    "without a hash"
                )
            return Soundness(KINDS[other["schema"]][0], checked, notes=notes)
        report = load_report(path)
        check_report(report, strict=not sealed)
    except (StateError, StoreError) as error:
        if isinstance(error.__cause__, OSError):
            raise  # a file that may not be read is not damaged
        if sealed_otherwise(path):
            return Soundness("page", checked)
        return Soundness("report", checked, (Fault(path, str(error)),))
    checked |= {"n_findings": len(report["findings"]), "n_sites": len(report["sites"])}
    return Soundness("report", checked, notes=() if sealed else (_UNSEALED,))


def sealed_otherwise(path: Path) -> bool:
    """Return whether a page of unknown kind is unchanged since it was written."""
    try:
        return bool(is_sealed(path))
    except StoreError:
        return False
