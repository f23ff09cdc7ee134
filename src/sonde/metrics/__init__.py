"""Evaluate scores that separate in-distribution from outlying rows, steps and pixels."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
