"""Explain units, directions and inputs, with tests that can refute the explanation."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
