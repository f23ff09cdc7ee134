"""Check state files: every byte, the units seen, and that states fit their methods."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, StateError, StoreError
from sonde.core.plan import STATE_VERSION
from sonde.files.places import to_path
from sonde.files.state_file import check_state
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.catalogue import find
from sonde.store import Fault, Soundness

_HEAD_BYTES = 8 << 20


def verify_state(path: str | Path) -> Soundness:
    """Read every byte of a ``.sonde`` file and return all faults.

    Raises
    ------
    StoreError
        If it cannot be read, or a later version wrote it.
    """
    path = to_path(path)
    refuse_future(path)
    checked = {"n_files": 1, "n_bytes": path.stat().st_size}
    try:
        header = check_state(path)
    except StateError as error:
        return Soundness("state", checked, (Fault(path, reason(error)),))
    if "entries" not in header:
        kind = "checkpoint of a run" if "plan" in header else "running state"
        return Soundness(kind, checked)
    return _verify_bundle(path, header, checked)


def refuse_future(path: Path) -> None:
    """Raise if a later version of sonde wrote a state file: this version cannot check it.

    Raises
    ------
    StoreError
        With the version.
    """
    refuse_later(path, _version_of(path))


def refuse_later(path: Path, version: object) -> None:
    """Raise if a version is later than this version of sonde knows.

    Raises
    ------
    StoreError
        With both versions.
    """
    if type(version) is int and version > STATE_VERSION:
        raise StoreError(
            f"{path} was written by a later sonde (version {version}, this one knows "
            f"{STATE_VERSION}). Install the version that wrote it."
        )


def _version_of(path: Path) -> int:
    """Return the latest version that a file's header states, or 0 if it states none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            envelope = json.loads(
                json.loads(file.read(min(length, _HEAD_BYTES)))["__metadata__"]["sonde"]
            )
        versions = [envelope["version"], envelope["header"].get("version", 0)]
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0
    return max((version for version in versions if type(version) is int), default=0)


def _verify_bundle(path: Path, header: dict[str, Any], checked: dict[str, int]) -> Soundness:
    """Check a fitted bundle with a correct hash: its units, and that its states fit its methods."""
    faults = [Fault(path, what) for what in _unit_faults(header.get("units"))]
    unknown = sorted(_unknown(header))
    notes = ()
    if unknown:
        names = ", ".join(unknown)
        notes = (f"holds methods of your own ({names}): their states were not checked",)
    else:
        try:
            fitted = Fitted.load(path)
        except StateError as error:
            faults.append(Fault(path, str(error)))
        else:
            checked |= {"n_results": len(fitted), "n_states": len(fitted.states)}
    return Soundness("fitted state", checked, tuple(faults), (), notes)


def _unknown(header: dict[str, Any]) -> Iterator[str]:
    for entry in header["entries"]:
        name = entry.get("instrument") if isinstance(entry, dict) else None
        try:
            find(str(name), ())
        except (InputError, TypeError):
            yield str(name)


def _unit_faults(units: Any) -> Iterator[str]:
    """Yield faults of the intervals of seen units: unsorted, reversed or overlapping."""
    try:
        for entry in units:
            spans = sorted((int(a), int(b)) for a, b in entry["units"])
            if any(a > b or a < 0 for a, b in spans):
                yield "an interval of units ends before it begins"
            if any(one[1] >= two[0] for one, two in pairwise(spans)):
                yield "a unit is counted twice"
    except (TypeError, ValueError, LookupError):
        yield "the processed units are not listed as intervals"


def reason(error: Exception) -> str:
    """Return the error's reason without the file name and the advice."""
    text = str(error).partition("is damaged or not a state file: ")[2] or str(error)
    return "is damaged: " + text.partition(". Take it from")[0]
