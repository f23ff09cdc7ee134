"""All errors and warnings that sonde raises on purpose.

The command line prints the message of a ``SondeError`` on one line and exits with code 2; anything
else is a bug and keeps its traceback.
"""

import json
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

_NO_MEMORY = re.compile(
    r"out of memory|can(?:'t|not) allocate memory|not enough memory|unable to allocate|bad_alloc",
    re.IGNORECASE,
)


class SondeError(Exception):
    """Base of all errors that a user can cause and fix."""


class SiteError(SondeError, LookupError):
    """A site does not exist, did not run, or cannot be read."""


class ShapeError(SondeError, ValueError):
    """A tensor does not have the expected shape or dtype."""


class StateError(SondeError, RuntimeError):
    """A fitted state does not match the model, the site, the version, or its own checksum."""


class StoreError(SondeError, OSError):
    """A file or a run directory cannot be read or written."""


class InputError(SondeError, ValueError):
    """A model, a data set, a column or an option is invalid."""


class MachineError(InputError):
    """Memory ran out or a worker process died; committed results are kept."""


IN_FORWARD = "in the model's forward on "
"""How the note begins that an error of a model's own code carries."""


class ForwardError(InputError):
    """The model's forward pass raised an exception, available as ``__cause__``."""


class BatchError(InputError):
    """A batch has too few rows, classes or pairs for a loss; use a larger batch."""


class CalibrationError(InputError):
    """Too few held-out scores for the requested false-alarm rate.

    Attributes
    ----------
    needed : int
        The smallest number of held-out scores that would do.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class SondeWarning(UserWarning):
    """A problem that does not stop the run but that the user should know."""


class RenamedWarning(SondeWarning):
    """A parameter was given by its old name, which the next release does not accept."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the machine or a device is out of memory.

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("no such file"))
    (True, False)
    """
    is_runtime = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or is_runtime


def reason_of(error: BaseException) -> str:
    """Return in plain words why a file could not be read, without Python's error numbers.

    Examples
    --------
    >>> reason_of(PermissionError(13, "Failed to open local file 'a.csv'"))
    'permission denied'
    >>> reason_of(UnicodeDecodeError("utf-8", bytes([137, 80]), 0, 1, "invalid start byte"))
    'not UTF-8 text (byte 0x89 at position 0)'
    >>> reason_of(EOFError("No data left in file"))
    'it is empty or ends too early'
    """
    if isinstance(error, OSError) and error.errno is not None:
        words = os.strerror(error.errno)
        return words[:1].lower() + words[1:]
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.object[error.start]:#04x} at position {error.start})"
    if isinstance(error, EOFError):
        return "it is empty or ends too early"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON from line {error.lineno}, column {error.colno} on"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error).rstrip(".")


def failed_import(package: str, error: ImportError) -> str:
    """Return a package that cannot be imported with the reason: it may be missing, or be broken.

    Examples
    --------
    >>> failed_import("ray", ModuleNotFoundError("No module named 'ray'"))
    "the package ray, which cannot be imported (No module named 'ray')"
    """
    return f"the package {package}, which cannot be imported ({reason_of(error)})"


def no_file(path: Path, kind: str = "file") -> str:
    """Return why a path is not a readable file: there is none, or it is a folder.

    Parameters
    ----------
    path : Path
        Path that is not a file.
    kind : str, default="file"
        Kind of file that was expected.

    Examples
    --------
    >>> no_file(Path("no/such.npz"))
    'no such file: no/such.npz'
    >>> no_file(Path("."), "audio file")
    'expected an audio file, got the folder .'
    """
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError):
        is_folder = False
    article = "an" if kind[0] in "aeiou" else "a"
    return (
        f"expected {article} {kind}, got the folder {path}"
        if is_folder
        else (f"no such {kind}: {path}")
    )


def near(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean ...?"`` with up to three similar names, or an empty text.

    Names that begin with what was typed come first.

    Parameters
    ----------
    name : str
        Name that was typed.
    known : Iterable[str]
        Names that exist.

    Examples
    --------
    >>> near("layer.0", ["layers.0", "layers.1", "head"])
    ' Did you mean layers.0, layers.1?'
    >>> near("mass", ["msp", "massive_activations"])
    ' Did you mean massive_activations?'
    """
    names = list(known)
    begun = [k for k in names if name and k.startswith(name)]
    matches = list(dict.fromkeys([*begun, *get_close_matches(name, names, n=3, cutoff=0.6)]))[:3]
    return f" Did you mean {', '.join(matches)}?" if matches else ""
