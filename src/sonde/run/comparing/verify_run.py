"""Check a run directory: read every byte of its commits, and find units that two commits cover."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, StateError
from sonde.core.state import canonical_json
from sonde.core.wording import plural
from sonde.files.durable import TEMPORARY
from sonde.files.places import to_path
from sonde.files.state_file import check_state
from sonde.run.comparing.verify_state import reason, refuse_future, refuse_later
from sonde.run.passes.chain import CHECKPOINT
from sonde.run.passes.ledger import PLAN, STATES
from sonde.run.passes.units import Range
from sonde.store import Fault, Soundness


def is_run_directory(directory: Path) -> bool:
    """Return whether a folder is a run directory: it holds a plan, states or passes."""
    return (
        (directory / PLAN).is_file() or (directory / STATES).is_dir() or bool(passes_in(directory))
    )


def passes_in(directory: Path) -> list[Path]:
    """Return the folders of the passes inside a run directory."""
    return sorted(d for d in directory.iterdir() if d.is_dir() and (d / PLAN).is_file())


def verify_run(directory: str | Path, tick: Callable[[int], None] = lambda _: None) -> Soundness:
    """Read every byte of a run directory, of one pass or several, and return all faults.

    Units that are not done yet are no fault: the command of the run goes on from there.

    Raises
    ------
    InputError
        If the folder is not a run directory.
    StoreError
        If a later version wrote in it, or it cannot be read.
    """
    directory = to_path(directory)
    if not directory.is_dir() or not is_run_directory(directory):
        raise InputError(f"verify: {directory} is not a run directory.")
    parts = [_Pass(d, tick) for d in (directory, *passes_in(directory)) if _holds_a_pass(d)]
    checked: dict[str, int] = {}
    for part in parts:
        for name, n in part.checked.items():
            checked[name] = checked.get(name, 0) + n
    return Soundness(
        "run directory",
        checked,
        tuple(fault for part in parts for fault in part.faults),
        tuple(path for part in parts for path in part.leftovers),
        tuple(note for part in parts for note in part.notes),
    )


def _holds_a_pass(directory: Path) -> bool:
    return (directory / PLAN).is_file() or (directory / STATES).is_dir()


class _Pass:
    """The check of the commits of one plan."""

    def __init__(self, directory: Path, tick: Callable[[int], None]) -> None:
        self.directory = directory
        self.checked = {"n_files": 0, "n_bytes": 0, "n_units": 0}
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self.plan, self.n_units = self._plan()
        sound = [r for path, r in self._listed() if self._state(path, r, tick)]
        counted = [r for r in sound if not any(other.covers(r) for other in sound)]
        covered = [directory / STATES / r.name for r in sound if r not in counted]
        temporary = [p for d in (directory, directory / STATES) for p in d.glob(f"*{TEMPORARY}*")]
        self.leftovers = sorted([*temporary, *covered])
        self.checked["n_units"] = sum(r.stop - r.start for r in counted)
        if self.n_units is not None:
            self.notes.append(
                f"{self.checked['n_units']:,} of {plural(self.n_units, 'unit')} are done"
            )
        self._checkpoint()

    def _wrong(self, path: Path, what: str) -> None:
        self.faults.append(Fault(path, what, (path,)))

    def _count(self, path: Path) -> None:
        self.checked["n_files"] += 1
        self.checked["n_bytes"] += path.stat().st_size

    def _plan(self) -> tuple[str | None, int | None]:
        """Return the plan's id and number of units, or None for both if the plan is damaged."""
        path = self.directory / PLAN
        if not path.exists():
            self.faults.append(Fault(path, "the plan is missing"))
            return None, None
        self._count(path)
        try:
            text = path.read_bytes().decode("ascii")
            raw = json.loads(text)
            version, n_units = raw["version"], raw["n_units"]
            refuse_later(path, version)
            if text != canonical_json(raw) + "\n" or type(n_units) is not int or version < 1:
                raise ValueError("not in the format of plans")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            self._wrong(path, f"the plan is damaged: {error}")
            return None, None
        digest = hashlib.blake2b(text.rstrip("\n").encode(), digest_size=16).hexdigest()
        return digest, n_units

    def _listed(self) -> list[tuple[Path, Range]]:
        """Return the state files named by a range of units, with their ranges."""
        ranges: list[tuple[Path, Range]] = []
        folder = self.directory / STATES
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            place = Range.named(path.name)
            if place is not None and path.is_file():
                ranges.append((path, place))
        return ranges

    def _state(self, path: Path, place: Range, tick: Callable[[int], None]) -> bool:
        self._count(path)
        refuse_future(path)
        tick(1)
        try:
            header = check_state(path)
        except StateError as error:
            self._wrong(path, reason(error))
            return False
        wrong = self._header(header, place)
        if wrong is not None:
            self._wrong(path, wrong)
        return wrong is None

    def _header(self, header: dict[str, Any], place: Range) -> str | None:
        if header.get("units") != [[place.start, place.stop - 1]]:
            return f"contains other units than its file name: {header.get('units')}"
        if self.plan is not None and header.get("plan") != self.plan:
            return "belongs to another plan"
        if not isinstance(header.get("counters"), dict):
            return "lacks its counters"
        if self.n_units is not None and not place.is_node(self.n_units):
            return "is not a range of the merge tree"
        return None

    def _checkpoint(self) -> None:
        path = self.directory / CHECKPOINT
        if not path.exists():
            return
        self._count(path)
        refuse_future(path)
        try:
            header = check_state(path)
        except StateError as error:
            self._wrong(path, reason(error))
            return
        if self.plan is not None and header.get("plan") != self.plan:
            self._wrong(path, "belongs to another plan")
        elif any(type(header.get(name)) is not int for name in ("passes", "units")):
            self._wrong(path, "does not record its progress")
