"""Check the folder of a track: every byte of its steps, and that all steps are of one kind."""

from collections.abc import Callable, Iterator
from pathlib import Path

from sonde.core.errors import InputError
from sonde.files.durable import TEMPORARY
from sonde.files.state_file import read_header
from sonde.run.comparing.verify_state import verify_state
from sonde.run.training.track import ALIKE, Track
from sonde.store import Fault, Soundness


def is_track(directory: Path) -> bool:
    """Return whether a folder holds states of the steps of a training run."""
    return len(Track(directory)) > 0


def verify_track(directory: str | Path, tick: Callable[[int], None] = lambda _: None) -> Soundness:
    """Read every byte of the steps of a track and return all faults.

    Raises
    ------
    InputError
        If the folder is no track.
    StoreError
        If a later version wrote in it, or it cannot be read.
    """
    directory, track = Path(directory), Track(directory)
    if not len(track):
        raise InputError(f"verify: {directory} contains no recorded steps of a training run.")
    checked = {"n_files": 0, "n_bytes": 0, "n_results": 0}
    faults: list[Fault] = []
    notes: list[str] = []
    sound: list[Path] = []
    for step in track.steps:
        soundness = verify_state(track.file(step))
        for name in checked:
            checked[name] += soundness.checked.get(name, 0)
        faults += soundness.faults
        notes += soundness.notes
        sound += [track.file(step)] if soundness.is_sound else []
        tick(1)
    left = tuple(sorted(directory.glob(f"*{TEMPORARY}*")))
    faults += _other_kinds(sound)
    return Soundness(
        "track of a training", checked, tuple(faults), left, tuple(dict.fromkeys(notes))
    )


def _other_kinds(files: list[Path]) -> Iterator[Fault]:
    """Yield a fault for each step that differs from the first in sites, data or instruments."""
    headers = [read_header(path) for path in files]
    for path, header in zip(files, headers, strict=True):
        other = [name for name in ALIKE if header.get(name) != headers[0].get(name)]
        if other:
            yield Fault(path, f"differs from {files[0].name} in {', '.join(other)}")
