"""Work for a thread while the caller makes further items, with bounded memory in between."""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Hands items to a thread, in order; the total size of waiting items is bounded.

    Leaving the block waits until everything that was put has been worked on, also after an
    exception of the caller's. An exception of the work is raised at the next ``put``, or at the end
    of the block.

    Parameters
    ----------
    work : callable
        Takes one item.
    most : int
        Sum of the sizes of waiting items above which ``put`` waits; one item always fits.
    """

    def __init__(self, work: Callable[[Item], None], most: int) -> None:
        self._work, self._most = work, most
        self._waiting: deque[tuple[Item, int]] = deque()
        self._size, self._ended = 0, False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sonde-store", daemon=True)

    def __enter__(self) -> "Background[Item]":
        self._thread.start()
        return self

    def put(self, item: Item, size: int) -> None:
        """Hand an item to the thread; wait while the waiting items are too large."""
        with self._changed:
            while self._waiting and self._size + size > self._most and self._failure is None:
                self._changed.wait()
            self._raise()
            self._waiting.append((item, size))
            self._size += size
            self._changed.notify_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                item, size = self._waiting[0]
            try:
                self._work(item)
            except BaseException as error:
                with self._changed:
                    self._failure = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._waiting.popleft()
                self._size -= size
                self._changed.notify_all()
            del item
