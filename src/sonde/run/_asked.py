"""What methods ask of a reading: options of ``sonde.read`` that their rows or columns come by."""

from collections.abc import Iterable
from typing import Any

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.stream import Stream

BY_VALUE = ("objective", "perturb")


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
