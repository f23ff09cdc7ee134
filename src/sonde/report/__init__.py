"""Present the JSON of a scan as a page, a terminal text or a notebook view; compare two reports.

Everything here is a pure function of the dict that ``schema.json`` describes; nothing is measured.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
