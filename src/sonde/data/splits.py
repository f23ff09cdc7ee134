"""Choose the split of a data set: the user's word, else one that suits the purpose."""

from collections.abc import Sequence
from pathlib import Path

from sonde.core.errors import InputError, near
from sonde.files.places import Place, to_path

FIRST = ("test", "testing", "validation", "valid", "val", "dev")
TRAIN = ("train", "training")


def chosen_split(
    name: str, known: Sequence[str], said: str | None = None, wanted: str | None = None
) -> str:
    """Return the split of a data set that is read.

    Parameters
    ----------
    name : str
        The data set, as the user typed it.
    known : sequence of str
        Its splits.
    said : str or None, default=None
        The split that the user named.
    wanted : str or None, default=None
        The split that the purpose needs, as ``train`` for a fit; None for the first of test,
        validation and train, or the only one.

    Raises
    ------
    InputError
        If there is no such split, or only the user can choose.

    Examples
    --------
    >>> chosen_split("letters", ["train", "test"])
    'test'
    >>> chosen_split("letters", ["train", "test"], wanted="train")
    'train'
    """
    if said is not None and said in known:
        return said
    if said is None:
        names = (TRAIN if wanted in TRAIN else (wanted,)) if wanted else (*FIRST, *TRAIN)
        choice = next((split for split in names if split in known), None)
        if choice is None and wanted is None and len(known) == 1:
            choice = known[0]
        if choice is not None:
            return choice
    reason = f", and none is called {said or wanted!r}" if said or wanted else ""
    raise InputError(
        f"data: {name} has the splits {', '.join(known)}{reason}. Append the split to read after "
        f"a slash, as in {name}/{known[0]}.{near(said or '', known)}"
    )


def path_of(data: str | Path) -> Path:
    """Return the path of a word; ``FOLDER:SPLIT`` is ``FOLDER/SPLIT``."""
    path = to_path(data).expanduser()
    if isinstance(path, Place):
        return path
    head, colon, split = str(path).rpartition(":")
    return Path(head) / split if colon and not path.exists() and Path(head).is_dir() else path


def split_folders(path: Path) -> list[str]:
    """Return the subfolders if all are splits and at least two exist, else an empty list."""
    entries = [p for p in path.iterdir() if not p.name.startswith(".")]
    are_splits = all(p.is_dir() and p.name.lower() in (*FIRST, *TRAIN) for p in entries)
    return sorted(p.name for p in entries) if are_splits and len(entries) > 1 else []
