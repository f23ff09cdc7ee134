"""Rows on disk: Arrow files of aligned ranges of units, readable without sonde."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
