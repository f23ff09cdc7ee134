"""What units, directions and inputs stand for, with the tests that can refute it."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
