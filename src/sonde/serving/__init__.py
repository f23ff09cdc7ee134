"""A model and the detectors fitted on it behind HTTP, watched from inside."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, extra="serve")
