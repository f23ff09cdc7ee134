"""What methods ask of a reading: options of ``sonde.read`` that their rows or columns come by."""

from collections.abc import Iterable
from typing import Any

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.requests import Task
from sonde.core.stream import Stream

BY_VALUE = ("objective", "perturb")
PATCHES = frozenset(("patches", "patches3"))


def asked(instruments: Iterable[Instrument]) -> dict[str, Any]:
    """Return the options that some methods ask for together.

    Raises
    ------
    InputError
        If two of them ask for different values of one option.
    """
    found: dict[str, Any] = {}
    for instrument in instruments:
        for name, value in instrument.reading().items():
            if found.setdefault(name, value) != value:
                raise InputError(
                    f"{type(instrument).__name__}: expected {name}={value!r}, and another method "
                    f"asks for {found[name]!r}. Fit them one after the other."
                )
    return found


def check_reading(instruments: Iterable[Instrument], stream: Stream) -> None:
    """Refuse a stream that was read otherwise than a method asks.

    Plain arrays do not say how they were read; sites and reducers are looked at one by one.

    Raises
    ------
    InputError
        With what to pass to ``sonde.read``.
    """
    identity = stream.identity()
    for instrument in instruments:
        for name, value in instrument.reading().items():
            if name in BY_VALUE and identity.get(name, value) != value:
                raise InputError(
                    f"fit: {type(instrument).__name__} expects a stream that was read with "
                    f"{name}={value!r}, got {identity[name]!r}. Pass it to sonde.read."
                )


def check_grids(tasks: Iterable[Task], stream: Stream) -> None:
    """Refuse to join patches that lie on other grids: there equal positions are other places.

    Raises
    ------
    InputError
        Naming two sites and their grids.
    """
    reducers = {s.key: s.reducer.name for s in stream.schema}
    joint = [t.keys for t in tasks if len(t.keys) > 1 and PATCHES & {reducers[k] for k in t.keys}]
    if not joint:
        return
    grids = {
        key: tuple((places.amax(0) + 1).tolist())
        for key, places in stream.first_batch().grid.items()
        if len(places)
    }
    for keys in joint:
        sizes = {grids[key]: key for key in reversed(keys) if key in grids}
        if len(sizes) > 1:
            found = " and ".join(f"{h} x {w} at {key}" for (h, w), key in list(sizes.items())[::-1])
            raise InputError(
                f"fit: expected patches on one grid at sites that are read together, got {found}. "
                "Read sites of one grid, or the reducer 'mean'."
            )
