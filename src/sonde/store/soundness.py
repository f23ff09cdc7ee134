"""Results of a file check, and the repair that removes damaged files."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sonde.files import durable


@dataclass(frozen=True)
class Fault:
    """A fault found by a check.

    Parameters
    ----------
    path : Path
        The file that is wrong or missing.
    what : str
        Description of the fault.
    removes : tuple of Path
        What a repair removes, in this order; nothing else depends on these files.
    """

    path: Path
    what: str
    removes: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Soundness:
    """Results of a check.

    Parameters
    ----------
    kind : str
        What the file or folder is.
    checked : dict of str to int
        How many files, bytes, rows and so on were looked at.
    faults : tuple of Fault
        Faults that the check found.
    leftovers : tuple of Path
        Files of interrupted writes: harmless, nobody reads them.
    notes : tuple of str
        Facts worth knowing that are no faults.
    """

    kind: str
    checked: dict[str, int]
    faults: tuple[Fault, ...] = ()
    leftovers: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def is_sound(self) -> bool:
        """True if no fault was found."""
        return not self.faults

    def json(self, root: Path) -> dict[str, Any]:
        """Return the results as JSON values, with paths relative to ``root``."""
        return {
            "kind": self.kind,
            "sound": self.is_sound,
            "checked": self.checked,
            "faults": [{"file": below(f.path, root), "what": f.what} for f in self.faults],
            "left_over": [below(p, root) for p in self.leftovers],
            "notes": list(self.notes),
        }


def below(path: Path, root: Path) -> str:
    """Return a path relative to ``root``, or its name if it is not inside ``root``.

    Examples
    --------
    >>> below(Path("acts/rows/x.arrow"), Path("acts")), below(Path("a.sonde"), Path("a.sonde"))
    ('rows/x.arrow', 'a.sonde')
    """
    if path == root or not path.is_relative_to(root):
        return path.name
    return path.relative_to(root).as_posix()


def removals(root: Path, found: Soundness) -> list[Path]:
    """Return the files that a repair removes, in order; only files inside ``root``."""
    wanted: Iterable[Path] = [p for f in found.faults for p in f.removes] + list(found.leftovers)
    real = root.resolve()
    return [
        path
        for path in dict.fromkeys(wanted)
        if (path.is_symlink() or path.is_file()) and path.parent.resolve().is_relative_to(real)
    ]


def repair(root: Path, found: Soundness) -> list[Path]:
    """Remove damaged and leftover files, and return their paths.

    The record of a damaged range goes first, so a stopped repair leaves no damaged range that
    counts.

    Parameters
    ----------
    root : Path
        Folder of the store.
    found : Soundness
        Result of the check that found the damage.

    Raises
    ------
    StoreError
        If a file cannot be removed.
    """
    gone = removals(root, found)
    for path in gone:
        durable.remove(path)
    return gone
