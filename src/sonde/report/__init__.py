"""From the JSON of a scan to a page, a terminal, a notebook, and the difference of two reports.

Everything here is a pure function of the dict that ``schema.json`` describes; nothing is measured.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
