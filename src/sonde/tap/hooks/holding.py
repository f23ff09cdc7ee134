"""Flags of a model's parts that stay False while any thread reads the model.

The first reader changes a flag, the last gives it back: until then it is False for all.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from operator import attrgetter
from typing import Any

from torch import nn

from sonde.tap.hooks.kept_buffers import KeptBuffers


class Holding:
    """Keeps a flag of objects at False; each ``take`` needs one ``give``.

    Parameters
    ----------
    name : str
        The attribute, True on some objects.
    """

    def __init__(self, name: str) -> None:
        self.name, self._get = name, attrgetter(name)
        self._lock = threading.Lock()
        self._readers: dict[int, int] = {}

    def take(self, objects: Sequence[Any]) -> list[Any]:
        """Set true flags to False; return these objects and those already kept at False."""
        with self._lock:
            held = self._readers
            taken = list(compress(objects, map(self._get, objects)))
            if held:
                taken += [o for o in objects if id(o) in held and not self._get(o)]
            for o in taken:
                self._readers[id(o)] = self._readers.get(id(o), 0) + 1
                setattr(o, self.name, False)
        return taken

    def give(self, mine: Iterable[Any]) -> None:
        """Restore what ``take`` returned."""
        with self._lock:
            for o in mine:
                self._readers[id(o)] -= 1
                if self._readers[id(o)] == 0:
                    del self._readers[id(o)]
                    setattr(o, self.name, True)


# The flags themselves: user classes override train() and eval() to merge or to freeze weights.
TRAINING, REQUIRES_GRAD = Holding("training"), Holding("requires_grad")


@contextmanager
def in_eval(*roots: nn.Module) -> Iterator[None]:
    """Keep models in eval mode during a block, then restore the mode of each part and the buffers.

    A forward pass in training mode draws dropout and moves the running statistics of batch norms.
    """
    parts = [part for root in roots for part in root.modules()]
    held, kept = TRAINING.take(parts), KeptBuffers(dict.fromkeys(parts))
    try:
        yield
    finally:
        kept.restore()
        TRAINING.give(held)
