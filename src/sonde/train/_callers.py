"""State of a training step that belongs to the running thread or task."""

from typing import Generic, TypeVar

from sonde.tap.hooks.latest import Latest

Value = TypeVar("Value")


class OfStep(Generic[Value]):
    """Values of each caller between its forward passes and its step; copies are empty."""

    def __init__(self) -> None:
        self._kept: Latest[list[Value]] = Latest()

    def add(self, value: Value) -> None:
        """Append a value for the running caller."""
        own = self._kept.own()
        if own is None:
            self._kept.put([value])
        else:
            own.append(value)

    def put(self, value: Value) -> None:
        """Store a value for the running caller, replacing its other values."""
        self._kept.put([value])

    def taken(self, *, lone: bool = False) -> list[Value]:
        """Return and remove the values of the running caller.

        A caller without any takes those of all others: it steps for them. With ``lone`` it takes
        them from the only other caller, and nothing if there are several.
        """
        own = self._kept.own()
        if own is not None:
            own, taken_values = [], [*own]
            self._kept.put(own)
            return taken_values
        others = [values for values in self._kept.values() if values]
        if lone and len(others) > 1:
            return []
        self._kept.clear()
        return [value for values in others for value in values]
