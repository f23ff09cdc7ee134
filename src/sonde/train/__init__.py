"""Losses at sites: plain torch modules that ``sonde.training`` attaches to any model.

A loss is called with rows and with columns by the names of its arguments; its value is the number
that the measure of the same name reports.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
