"""Answers that wait for feedback: hashes in an array of a fixed size, in memory or in a file.

In a file, other replicas find the answers, and so does this one after it was killed.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
from filelock import FileLock

from sonde.serving.served import Answer

NAME = "answers.bin"
ALARMS: tuple[bool | None, ...] = (None, False, True)
EXACT = 2**53
"""Up to which integers are floats without rounding."""
ID, TEXT, NUMBER, ALARM = range(4)
NO_ID = 0


@dataclass(frozen=True)
class Remembered:
    """An answer that was given.

    Parameters
    ----------
    text, number : int
        Hashes of the answer as a text and as a number, so that 3 and 3.0 are equal.
    alarm : bool or None
        Whether its input had an alarm.
    """

    text: int
    number: int
    alarm: bool | None

    def equals(self, truth: Any) -> bool:
        """Return whether the answer is this text or number."""
        text, number = hashes_of(truth)
        return self.text == text or self.number == number


@final
class AnswerRing:
    """The last answers of a replica; the oldest are forgotten.

    Parameters
    ----------
    kept : int
        Answers that are remembered.
    folder : Path or None
        The folder of the replica; None keeps the answers in memory.
    """

    def __init__(self, kept: int, folder: Path | None = None) -> None:
        self._lock: Any = nullcontext()
        shape = (kept + 1, 4)  # the first line counts the answers
        if folder is None:
            self._rows = np.full(shape, NO_ID, np.int64)
            return
        path = folder / NAME
        if not _is_whole(path, kept):  # zeros take their room now: memory in a hole of a file on a
            path.write_bytes(bytes(8 * 4 * (kept + 1)))  # full disk would end the process (SIGBUS)
        self._lock = FileLock(path.with_suffix(".lock"))
        self._rows = np.memmap(path, np.int64, "r+", shape=shape)

    def add(self, ids: Sequence[str], answers: Sequence[Answer]) -> None:
        """Remember the answers to some inputs."""
        rows, kept = self._rows, len(self._rows) - 1
        for name, one in zip(ids, answers, strict=True):
            at = 1 + int(rows[0, 0]) % kept
            alarm = None if one.verdict is None else one.verdict.alarm
            rows[at] = (_hash(name), *hashes_of(one.answer), ALARMS.index(alarm))
            rows[0, 0] += 1

    def pop(self, name: str) -> Remembered | None:
        """Return the answer with an id and forget it, or None if it is unknown."""
        with self._lock:
            rows = np.flatnonzero(self._rows[1:, ID] == _hash(name)) + 1
            if not name or not len(rows):
                return None
            row = self._rows[int(rows[0])]
            answer = Remembered(int(row[TEXT]), int(row[NUMBER]), ALARMS[int(row[ALARM]) % 3])
            row[ID] = NO_ID
            return answer


def others_of(folder: Path, kept: int) -> Iterator[AnswerRing]:
    """Yield the answers of the other replicas whose folders lie beside this one."""
    for path in sorted(folder.parent.glob(f"*/{NAME}")):
        if path.parent != folder and _is_whole(path, kept):
            yield AnswerRing(kept, path.parent)


def _is_whole(path: Path, kept: int) -> bool:
    return path.is_file() and path.stat().st_size == 8 * 4 * (kept + 1)


def hashes_of(answer: Any) -> tuple[int, int]:
    """Return hashes of an answer as text and as a number, so that 3 and 3.0 match."""
    text = number = str(answer)
    if isinstance(answer, float) or (isinstance(answer, int) and abs(answer) <= EXACT):
        number = f"number {answer + 0.0!r}"
    return _hash(text), _hash(number)


def _hash(text: str) -> int:
    """Return 64 bits of a hash, the same in every process."""
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little", signed=True)
