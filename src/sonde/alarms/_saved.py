"""Files with a watch's position in its stream, so that a restarted service continues."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import StateError
from sonde.core.state import State
from sonde.files.places import to_path
from sonde.files.state_file import read_header, read_one, write_state

FORMAT = "sonde-watch"
S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class WatchState(State):
    """The state of a watch after the scores so far.

    ``won`` holds the log-wealth of each bet, or the sum of the change detector.
    """

    scores: Float[Tensor, "score"]
    won: Float[Tensor, "bet"]
    limit: float
    seed: int
    step: int
    alarm: int = 0


def save_watch(path: str | Path, kind: str, state: State) -> str:
    """Write the state of a watch and return the id of the file."""
    return write_state(to_path(path), {"format": FORMAT, "watch": kind}, {kind: state})


def load_watch(path: str | Path, kind: str, state_type: type[S]) -> S:
    """Read the saved state of a watch of the same kind.

    Raises
    ------
    StateError
        If the file is damaged, or of something else.
    """
    header = read_header(path)
    if (header.get("format"), header.get("watch")) != (FORMAT, kind):
        raise StateError(f"{kind}.load: expected a file that {kind}.save wrote, got {path}.")
    return read_one(path, kind, state_type)
