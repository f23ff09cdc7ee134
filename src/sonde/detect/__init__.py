"""Detectors score rows, always higher = more outlying; shifts compare two data sets."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
