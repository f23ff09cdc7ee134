"""Checks of a report: the hash over its bytes, and that it follows the schema."""

from pathlib import Path

from sonde.core.errors import StateError, StoreError
from sonde.report._schema import check_report
from sonde.report.files import is_sealed, load_report
from sonde.report.other_pages import KINDS, UNSEALED, other_page
from sonde.store import Fault, Soundness

_UNSEALED = "it holds no hash, so only its form was checked"


def verify_report(path: str | Path) -> Soundness:
    """Check every byte of a report, or of another command's page, in HTML or JSON.

    Raises
    ------
    StoreError
        If it cannot be read.
    """
    path = Path(path)
    checked = {"n_files": 1, "n_bytes": path.stat().st_size}
    try:
        sealed = is_sealed(path)
        if sealed is False:
            raise StateError("its bytes are not those that were written")
        other = other_page(path)
        if other is not None:
            notes = () if sealed else (_UNSEALED,)
            if not sealed and other.keys() != UNSEALED:
                raise StateError("it holds no hash, and other keys than sonde writes without one")
            return Soundness(KINDS[other["schema"]], checked, notes=notes)
        report = load_report(path)
        check_report(report, strict=not sealed)
    except (StateError, StoreError) as error:
        if sealed_otherwise(path):
            return Soundness("page", checked)
        return Soundness("report", checked, (Fault(path, str(error)),))
    checked |= {"n_findings": len(report["findings"]), "n_sites": len(report["sites"])}
    return Soundness("report", checked, notes=() if sealed else (_UNSEALED,))


def sealed_otherwise(path: Path) -> bool:
    """Return whether a page that carries no JSON that is known here is as it was written."""
    try:
        return bool(is_sealed(path))
    except StoreError:
        return False
