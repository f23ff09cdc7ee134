"""Shared mergeable statistics (sketches) that many methods read, and their mathematics."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
