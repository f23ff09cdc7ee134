"""State of a step of training that belongs to the thread or task that runs it."""

from typing import Generic, TypeVar

from sonde.tap.hooks.latest import Latest

Value = TypeVar("Value")


class OfStep(Generic[Value]):
    """Values of each caller between its forward passes and its step; copies are empty."""

    def __init__(self) -> None:
        self._kept: Latest[list[Value]] = Latest()

    def add(self, value: Value) -> None:
        """Keep a value for the running caller, behind its other values."""
        own = self._kept.own()
        if own is None:
            self._kept.put([value])
        else:
            own.append(value)

    def put(self, value: Value) -> None:
        """Keep one value for the running caller, in place of its other values."""
        self._kept.put([value])

    def taken(self, *, lone: bool = False) -> list[Value]:
        """Return the values of the running caller and forget them.

        A caller without any takes those of all others: it steps for them. With ``lone`` it takes
        them from the only other caller, and nothing if there are several.
        """
        own = self._kept.own()
        if own is not None:
            own, found = [], [*own]
            self._kept.put(own)
            return found
        others = [values for values in self._kept.values() if values]
        if lone and len(others) > 1:
            return []
        self._kept.clear()
        return [value for values in others for value in values]
