"""The last value of each caller, an asyncio task or else a thread, and a lock between callers."""

import sys
import threading
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

Value = TypeVar("Value")


def caller() -> object:
    """Return the asyncio task that runs now, or else the thread."""
    asyncio: Any = sys.modules.get("asyncio")  # unless it is imported, no task can run
    if asyncio is not None and asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
        if task is not None:
            return task
    return threading.current_thread()


class CopiedLock:
    """A lock that is replaced by a new lock in copies and saved objects."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __reduce__(self) -> Any:
        """Copy and pickle without the waiting threads."""
        return CopiedLock, ()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Latest(Generic[Value]):
    """Stores the last value of each caller, as long as the caller lives.

    Attributes
    ----------
    last : Value or None
        The value that any caller put here last.
    """

    def __init__(self) -> None:
        self._own: WeakKeyDictionary[object, Value] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self.last: Value | None = None

    def __reduce__(self) -> Any:
        """Copy and pickle without the values, which belong to callers of this object."""
        return Latest, ()

    def forget(self) -> None:
        """Drop the last value of the running caller."""
        with self._lock:
            self._own.pop(caller(), None)

    def put(self, value: Value) -> None:
        """Store a value as the last one of the running caller and of all callers."""
        with self._lock:
            self._own[caller()] = value
            self.last = value

    def own(self) -> Value | None:
        """Return the last value of the running caller, or None."""
        return self._own.get(caller())

    def get(self) -> Value | None:
        """Return the last value of the running caller, or else the last of all callers."""
        own = self.own()
        return self.last if own is None else own

    def values(self) -> list[Value]:
        """Return the last value of each living caller, and the last of all callers."""
        with self._lock:
            own = list(self._own.values())
        last = () if self.last is None else (cast(Value, self.last),)
        return [*own, *(x for x in last if all(x is not one for one in own))]

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._own.clear()
            self.last = None
