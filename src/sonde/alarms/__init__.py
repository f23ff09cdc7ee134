"""Alarms from scores: combined over layers and detectors, and monitored over time."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
