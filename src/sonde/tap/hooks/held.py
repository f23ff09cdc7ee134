"""A value that is set inside a ``with`` block, separately for each caller."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from sonde.core.errors import StateError
from sonde.tap.hooks.latest import caller

Value = TypeVar("Value")


class Held(Generic[Value]):
    """Values of open ``with`` blocks, by the thread or task that opened them.

    A caller that opened no block, such as a thread that generates for another one, has the value of
    the only caller that did.

    Parameters
    ----------
    name : str
        What opens a block, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name, self._lock = name, threading.Lock()
        self._open: tuple[tuple[object, Value | None], ...] = ()

    def __reduce__(self) -> Any:
        """Copy and pickle without the open blocks, which belong to callers of this object."""
        return Held, (self._name,)

    @contextmanager
    def held(self, value: Value | None) -> Iterator[None]:
        """Set a value, or none, inside a block."""
        entry = (caller(), value)
        with self._lock:
            self._open = (*self._open, entry)
        try:
            yield
        finally:
            with self._lock:
                self._open = tuple(one for one in self._open if one is not entry)

    def get(self) -> Value | None:
        """Return the value set for the running caller.

        Raises
        ------
        StateError
            If it opened no block, and several others did.
        """
        entries = self._open
        if not entries:
            return None
        me = caller()
        for who, value in reversed(entries):
            if who is me:
                return value
        if any(who is not entries[0][0] for who, _ in entries):
            raise StateError(
                f"{self._name}: expected a block that this thread or task opened, got blocks of "
                "several other threads or tasks: it is not known which block applies to this "
                "call. Open the block in the thread or task that calls the model."
            )
        return entries[-1][1]
